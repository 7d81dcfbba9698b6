"""Run a local language model with Hugging Face transformers: an embedded model, a folder, or a hub model."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from a2a_ray.agents.chat_prompts import chat, decoded, rendered, require_text, running_text
from a2a_ray.agents.hf.hf_loading import Loaded, load
from a2a_ray.agents.hf.hf_source import config_context, fetch, has_chat_template, local_folder
from a2a_ray.agents.hf.sampler import Generated, Request, generate
from a2a_ray.agents.setting_types import Count, Fraction, NonEmptyText, NonNegative
from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.errors import AgentError, ConfigurationError, ContextLengthError
from a2a_ray.core.message import Message
from a2a_ray.core.validation import turn_settings, validated

NO_TEMPLATE = "has no chat template; use mode: completion, or a model made for chat"


class GenerationPrompt(NamedTuple):
    """One row of a batch, and the number of old messages dropped from it."""

    request: Request
    dropped: int


class HFAgent(BaseAgent):
    """Continues a text (base models) or answers in a chat (models with a chat template), with seeded sampling.

    model: an embedded model ("tiny-llama", "tiny-neox"), a folder (write ./tiny-llama for a folder of that name), or a
        hub id "owner/name". Only safetensors are loaded and no code that comes with a model is run.
    revision: commit, tag or branch of a hub model; a full commit hash makes runs repeatable.
    dtype: of the weights and the forward pass; "auto" is what the model was saved in. device: "auto" is the GPU if any.
    mode: "completion": the context is one text that the model continues, see `separator`. "chat": the model's
        chat template; own turns are the assistant's, all others (and the opening) the user's.
    instructions: chat: the system message. Completion: a text before the context, never dropped.
    max_new_tokens: most tokens of one answer. temperature: 0 is greedy. top_p: nucleus sampling below 1.
    separator: between two texts if the first ends in punctuation and the next begins without white space.
    batch_size: most rows in one forward pass. threads: CPU threads of the process.

    An answer's text is kept as generated, white space at its edges included; special tokens are left out of it. It
    depends on the message and its seed, not on the batch: exactly in float64, up to near ties in lower precision.
    When the context is full, the oldest messages are dropped whole; `metadata["dropped_messages"]` counts them.
    `metadata["finish_reason"]` is "stop" (the model ended its text) or "length".
    """

    placement = "actor"
    turn_options = frozenset({"temperature", "top_p", "max_new_tokens", "instructions"})

    @validated
    def __init__(
        self,
        name: str,
        model: NonEmptyText,
        *,
        revision: str | None = None,
        dtype: Literal["float32", "float64", "bfloat16", "float16", "auto"] = "float32",
        device: str = "auto",
        mode: Literal["completion", "chat"] = "completion",
        instructions: str | None = None,
        max_new_tokens: Count = 50,
        temperature: NonNegative = 0.7,
        top_p: Fraction = 0.95,
        separator: str = " ",
        batch_size: Count = 64,
        threads: Count | None = None,
    ) -> None:
        super().__init__(name)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
            raise ConfigurationError(f"device: {device!r}; expected auto, cpu, cuda, cuda:0, ... or mps")
        self.model = model
        self.revision = revision
        self.dtype = dtype
        self.device = device
        self.mode = mode
        self.separator = separator
        self.batch_size = batch_size
        self.threads = threads
        self.settings: Mapping[str, Any] = {
            "instructions": instructions,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        self._loaded: Loaded | None = None

    def check(self) -> None:
        """Raise ConfigurationError for a model that cannot exist. Works offline and loads nothing."""
        folder = local_folder(self.model)
        if folder is None:
            return
        if self.mode == "chat" and not has_chat_template(folder):
            raise ConfigurationError(f"mode: 'chat'; model {self.model!r} {NO_TEMPLATE}")
        context, new = config_context(folder), self.settings["max_new_tokens"]
        if context is not None and new >= context:
            raise ConfigurationError(
                f"max_new_tokens: {new}; the context of {self.model!r} has {context} tokens in all"
            )

    def max_output_tokens(self) -> int:
        """Return `max_new_tokens`."""
        return int(self.settings["max_new_tokens"])

    def setup(self) -> None:
        """Load the model; download it first if it is not stored locally. Raises AgentError."""
        self._ready()

    def _ready(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Loaded:
        folder: Path | None = local_folder(self.model)
        if folder is None:
            folder = fetch(self.model, self.revision)
        if self.threads is not None:
            import torch

            torch.set_num_threads(self.threads)
        loaded = load(folder, self.model, self.dtype, self.device)
        if self.mode == "chat" and not loaded.tokenizer.chat_template:
            raise AgentError(f"model {self.model!r} {NO_TEMPLATE}")
        return loaded

    def step(self, message: Message) -> Message:
        """Return the answer to one message. Raises AgentError, including ContextLengthError."""
        (answer,) = self.step_batch([message])
        if isinstance(answer, AgentError):
            raise answer
        return answer

    def step_batch(self, messages: Sequence[Message]) -> list[Message | AgentError]:
        """Return the answers in order; the messages may have different settings.

        A message that cannot be answered yields its error and does not affect the others. Raises AgentError if the
        model as a whole fails.
        """
        loaded = self._ready()
        answers: dict[int, Message | AgentError] = {}
        prompts: dict[int, GenerationPrompt] = {}
        for place, message in enumerate(messages):
            try:
                prompts[place] = self._prompt(message, loaded)
            except AgentError as error:
                answers[place] = error
        order = sorted(prompts, key=lambda place: len(prompts[place].request.tokens))  # like lengths: little padding
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            try:
                outputs = generate(loaded.model, [prompts[p].request for p in places], loaded.stop, loaded.pad)
            except Exception as error:  # such as out of memory; other errors may not survive pickling
                raise AgentError(
                    f"agent {self.name!r}: {self.model!r} failed on {len(places)} rows: {type(error).__name__}: {error}"
                ) from error
            texts = decoded(loaded.tokenizer, [output.tokens for output in outputs])
            for place, output, text in zip(places, outputs, texts, strict=True):
                answers[place] = self._answer(messages[place], prompts[place], output, text)
        return [answers[place] for place in range(len(messages))]

    def _answer(self, message: Message, prompt: GenerationPrompt, output: Generated, text: str) -> Message | AgentError:
        if output.finish == "invalid":
            return AgentError(
                f"agent {self.name!r} at turn {message.turn}: {self.model!r} computed NaN or infinite logits"
                f" in {self.dtype}; use dtype: float32 or bfloat16"
            )
        metadata: dict[str, Any] = {"finish_reason": output.finish}
        if prompt.dropped:
            metadata["dropped_messages"] = prompt.dropped
        spent = len(output.tokens) + (output.finish == "stop")  # the stop token is drawn too
        usage = {"input_tokens": len(prompt.request.tokens), "output_tokens": spent, "requests": 1}
        return message.reply(text, self.name, usage, metadata)

    def _prompt(self, message: Message, loaded: Loaded) -> GenerationPrompt:
        """Return the prompt for one message, with as much of the history as fits."""
        where = f"agent {self.name!r} at turn {message.turn}"
        settings = turn_settings(HFAgent, self.settings, message.options, where)
        context = (*message.history, message)
        require_text(context, where)
        new = settings["max_new_tokens"]
        room = None if loaded.context is None else loaded.context - new

        @cache
        def tokens(dropped: int) -> list[int]:
            return self._encode(context[dropped:], settings["instructions"], loaded) or [loaded.start]

        def fits(dropped: int) -> bool:
            return room is None or len(tokens(dropped)) <= room

        dropped = 0 if fits(0) else bisect_left(range(len(context)), True, lo=1, key=fits)
        if dropped == len(context):
            raise ContextLengthError(
                f"{where}: the newest message takes {len(tokens(dropped - 1))} tokens and max_new_tokens {new};"
                f" the context of {self.model!r} has {loaded.context}"
            )
        request = Request(tokens(dropped), message.seed, settings["temperature"], settings["top_p"], new)
        return GenerationPrompt(request, dropped)

    def _encode(self, shown: Sequence[Message], instructions: str | None, loaded: Loaded) -> list[int]:
        tokenizer = loaded.tokenizer
        if self.mode == "completion":
            text = running_text([instructions or "", *(str(m.content) for m in shown)], self.separator)
            return list(tokenizer(text).input_ids)
        turns = chat(shown, self.name, instructions)
        try:
            text = rendered(tokenizer, turns)
        except AgentError as error:
            raise AgentError(f"agent {self.name!r}: {self.model!r}: {error}") from error
        return list(tokenizer(text, add_special_tokens=False).input_ids)  # the template writes them itself
