"""Load a causal language model and its tokenizer from a folder: only safetensors, no foreign code, no output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import AgentError
from a2a_ray.core.hub import first_line, silence


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model.

    model, tokenizer: of transformers. context: the most tokens of prompt and answer together; None without a limit.
    stop: tokens that end an answer. start: the token of an empty prompt. pad: the token that fills rows at the left.
    """

    model: Any
    tokenizer: Any
    context: int | None
    stop: tuple[int, ...]
    start: int
    pad: int


def load(folder: Path, name: str, dtype: str, device: str) -> Loaded:
    """Load model and tokenizer from a folder without running code from it or printing. Raises AgentError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    safe = {"trust_remote_code": False, "local_files_only": True}
    with silence():
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
    if absent := sorted(info["missing_keys"]):  # transformers would continue with random numbers
        raise AgentError(
            f"model {name!r} is not a complete causal language model: {len(absent)} weights missing, {absent[0]} first"
        )
    context = _context(model, tokenizer)
    tokenizer.model_max_length = int(1e30)  # the agent fits the prompt; the tokenizer need not warn
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


def _context(model: Any, tokenizer: Any) -> int | None:
    """Return the smaller of the model's positions and the tokenizer's limit, which is 1e30 for "none"."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    bounds = [n for n in (positions, tokenizer.model_max_length) if isinstance(n, int) and 0 < n < 10**9]
    return min(bounds, default=None)


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
