"""Which settings are compared: the published one, and one or two factors changed at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any, TypeVar

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.experiment.spec import Experiment

PUBLISHED_TOKENS, PUBLISHED_TEMPERATURE = 50, 0.7
"""Of the published experiment; top-p is 0.95 there, and each model sees only the other's last output."""
SHOWN: dict[str, Any] = {"last": "last", "last 3": {"last": 3}, "400 characters": {"characters": 400}}
"""What a speaker is shown, by the name that the study gives it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell: who talks, tokens per turn, temperature, what is shown."""

    pair: tuple[str, str]
    tokens: int
    temperature: float
    shown: str

    @property
    def label(self) -> str:
        """The cell in words, unique in a study."""
        first, second = (name.rstrip("/").rpartition("/")[2] for name in self.pair)
        return f"{first} + {second}, {self.tokens} tokens, temperature {self.temperature:g}, {self.shown}"


Number = TypeVar("Number", int, float)


def numbers_of(what: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """The numbers of a list such as "25,100". Raises ConfigurationError."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(n) for n in found):
        raise ConfigurationError(
            f"{what}: {text!r}; expected {'whole numbers' if kind is int else 'numbers'} with commas between them"
        )
    return found


def settings(models: Sequence[str], tokens: Sequence[int], temperatures: Sequence[float]) -> list[Setting]:
    """The cells of a study, each once; the first pair of two different models is the main one.

    Temperature x what is shown, in full, at the published number of tokens; every number of tokens, and every pair of
    models, at two settings: the published one and its opposite (coldest, most shown). Raises ConfigurationError.
    """
    if not models:
        raise ConfigurationError("models: none given; expected at least one")
    main = (models[0], models[1] if len(models) > 1 else models[0])
    published = (PUBLISHED_TEMPERATURE, "last")
    opposite = (min(temperatures), "400 characters")
    grid = [
        Setting(main, PUBLISHED_TOKENS, *at) for at in product(sorted({*temperatures, PUBLISHED_TEMPERATURE}), SHOWN)
    ]
    lengths = [Setting(main, n, *at) for at in (published, opposite) for n in sorted({*tokens, PUBLISHED_TOKENS})]
    pairs = [
        Setting(pair, PUBLISHED_TOKENS, *at)
        for at in (published, opposite)
        for pair in combinations_with_replacement(dict.fromkeys(models), 2)
    ]
    return list(dict.fromkeys(grid + lengths + pairs))


def experiment(cells: Sequence[Setting], openings: int, rounds: int, seed: int) -> Experiment:
    """The cells as one specification. Raises ConfigurationError."""
    return Experiment.parse(
        {
            "name": "loops",
            "seed": seed,
            "openings": {"first": openings},
            "max_rounds": rounds,
            "agents": _agents(cells[0]),
            "sweep": [
                {
                    "label": cell.label,
                    "agents": _agents(cell),
                    "protocol": {"kind": "alternating", "context": SHOWN[cell.shown]},
                }
                for cell in cells
            ],
        }
    )


def _agents(cell: Setting) -> list[dict[str, Any]]:
    sampling = {"max_new_tokens": cell.tokens, "temperature": cell.temperature, "top_p": 0.95}
    return [
        {"name": name, "kind": "hf", "model": model, **sampling}
        for name, model in zip(("first", "second"), cell.pair, strict=True)
    ]
