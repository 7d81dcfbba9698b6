"""Loading a causal language model and its tokeniser from a folder: safetensors only, no foreign code, no output."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import AgentError


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready for work.

    model, tokenizer: of transformers. context: most tokens of prompt and answer together; None where it has no bound.
    stop: tokens that end an answer. start: the token an empty prompt is given. pad: fills rows at the left.
    """

    model: Any
    tokenizer: Any
    context: int | None
    stop: tuple[int, ...]
    start: int
    pad: int


def load(folder: Path, name: str, dtype: str, device: str) -> Loaded:
    """Loads model and tokeniser from a folder, runs no code of theirs, prints nothing. Raises AgentError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    safe = {"trust_remote_code": False, "local_files_only": True}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto" if dtype == "auto" else getattr(torch, dtype),
                use_safetensors=True,
                output_loading_info=True,
                **safe,
            )
            model = model.to(place).eval()
        except Exception as error:
            raise AgentError(
                f"model {name!r} could not be loaded on {place}: {type(error).__name__}: {first_line(error)}"
            ) from error
    if absent := sorted(info["missing_keys"]):  # transformers would go on with random numbers in their place
        raise AgentError(
            f"model {name!r} is no whole causal language model: {len(absent)} weights missing, {absent[0]} first"
        )
    context = _context(model, tokenizer)
    tokenizer.model_max_length = int(1e30)  # the prompt is fitted by us; the tokeniser need not warn
    ends = _ids(model.generation_config.eos_token_id) or _ids(model.config.eos_token_id)
    ends += [token for token in _ids(tokenizer.eos_token_id) if token not in ends]
    start, pad = (
        next((token for token in choices if token is not None), 0)
        for choices in (
            (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, model.config.bos_token_id),
            (tokenizer.pad_token_id, tokenizer.eos_token_id),
        )
    )
    return Loaded(model, tokenizer, context, tuple(ends), start, pad)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no warnings of transformers and the hub inside; afterwards everything is as before."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_log, hub_bars = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    hub_level = hub_log.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub_log.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        hub_log.setLevel(hub_level)
        if bars:
            transformers_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def _context(model: Any, tokenizer: Any) -> int | None:
    """The model's positions, or the tokeniser's limit where that is smaller; it writes 1e30 for "none"."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    bounds = [n for n in (positions, tokenizer.model_max_length) if isinstance(n, int) and 0 < n < 10**9]
    return min(bounds, default=None)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
