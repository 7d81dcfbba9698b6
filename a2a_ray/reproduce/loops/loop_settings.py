"""The settings that the loop study compares: the published one, and variations of one or two factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement, product
from typing import Any

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.experiment.spec import Experiment

PUBLISHED_TOKENS, PUBLISHED_TEMPERATURE, PUBLISHED_CONTEXT = 50, 0.7, "last"
"""Of the published experiment. There top-p is 0.95, and each model sees only the other's last output."""
LONGEST_CONTEXT = "400 characters"
CONTEXTS: dict[str, Any] = {"last": "last", "last 3": {"last": 3}, LONGEST_CONTEXT: {"characters": 400}}
"""Contexts of a speaker: name in the study -> value of `protocol.context`."""


@dataclass(frozen=True, slots=True)
class LoopSetting:
    """One cell of the study: the pair of models, tokens per turn, temperature and context."""

    pair: tuple[str, str]
    tokens: int
    temperature: float
    context: str

    @property
    def models(self) -> str:
        """The two models in short, e.g. "tiny-llama + tiny-neox"."""
        return " + ".join(map(short_name, self.pair))

    @property
    def label(self) -> str:
        """A label of the cell, unique in a study."""
        return f"{self.models}, {self.tokens} tokens, temperature {self.temperature:g}, {self.context}"


def short_name(model: str) -> str:
    """Return the last part of a path or Hub id."""
    return model.rstrip("/").rpartition("/")[2]


def loop_settings(models: Sequence[str], tokens: Sequence[int], temperatures: Sequence[float]) -> list[LoopSetting]:
    """Return the cells of a study, each once. The first two models are the main pair.

    The main pair runs every temperature with every context, at the published number of tokens. Every number of tokens
    and every pair of models run in two settings: the published one and its opposite (lowest temperature, longest
    context). Raises ConfigurationError without a model.
    """
    if not models:
        raise ConfigurationError("models: none given; expected at least one")
    main = (models[0], models[1] if len(models) > 1 else models[0])
    published = (PUBLISHED_TEMPERATURE, PUBLISHED_CONTEXT)
    opposite = (min(temperatures), LONGEST_CONTEXT)
    grid = [
        LoopSetting(main, PUBLISHED_TOKENS, *factors)
        for factors in product(sorted({*temperatures, PUBLISHED_TEMPERATURE}), CONTEXTS)
    ]
    lengths = [
        LoopSetting(main, n, *factors) for factors in (published, opposite) for n in sorted({*tokens, PUBLISHED_TOKENS})
    ]
    pairs = [
        LoopSetting(pair, PUBLISHED_TOKENS, *factors)
        for factors in (published, opposite)
        for pair in combinations_with_replacement(dict.fromkeys(models), 2)
    ]
    return list(dict.fromkeys(grid + lengths + pairs))


def loop_experiment(settings: Sequence[LoopSetting], openings: int, rounds: int, seed: int) -> Experiment:
    """Return the settings as one specification. Raises ConfigurationError."""
    return Experiment.parse(
        {
            "name": "loops",
            "seed": seed,
            "openings": {"first": openings},
            "max_rounds": rounds,
            "agents": _agents(settings[0]),
            "sweep": [
                {
                    "label": setting.label,
                    "agents": _agents(setting),
                    "protocol": {"kind": "alternating", "context": CONTEXTS[setting.context]},
                }
                for setting in settings
            ],
        }
    )


def _agents(setting: LoopSetting) -> list[dict[str, Any]]:
    sampling = {"max_new_tokens": setting.tokens, "temperature": setting.temperature, "top_p": 0.95}
    return [
        {"name": name, "kind": "hf", "model": model, **sampling}
        for name, model in zip(("first", "second"), setting.pair, strict=True)
    ]
