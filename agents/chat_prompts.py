"""Make the prompt of a language model from a conversation, for a chat model or a base model, and decode its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from a2a_ray.core.errors import AgentError
from a2a_ray.core.message import Message

MERGED = "\n\n"  # between merged messages: many chat templates require alternating roles


def require_text(messages: Sequence[Message], where: str) -> None:
    """Raise AgentError if one of the messages is not text."""
    if vector := next((m for m in messages if not isinstance(m.content, str)), None):
        raise AgentError(
            f"{where}: turn {vector.turn} is a {type(vector.content).__name__}; expected text, because a language"
            " model reads text"
        )


def running_text(texts: Sequence[str], separator: str) -> str:
    """Return the texts joined, oldest first.

    `separator` is added only if a text ends in punctuation and the next begins without white space. A text that ends
    inside a word is continued directly, as the base model itself would continue it.
    """
    whole = ""
    for text in texts:
        seam = whole[-1:] and text[:1]
        if seam and not (whole[-1].isspace() or whole[-1].isalnum() or seam.isspace()):
            whole += separator
        whole += text
    return whole


def chat(messages: Sequence[Message], name: str, instructions: str | None) -> list[dict[str, str]]:
    """Return the messages as chat roles, oldest first: those of `name` are the assistant's, all others the user's.

    Adjacent messages of one role are merged. If the assistant would come first, an empty user message precedes it,
    because most templates require one. `instructions` become the system message.
    """
    turns: list[dict[str, str]] = []
    for message in messages:
        role = "assistant" if message.sender == name else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += MERGED + str(message.content)
        else:
            turns.append({"role": role, "content": str(message.content)})
    if turns and turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": ""})
    if instructions:
        turns.insert(0, {"role": "system", "content": instructions})
    return turns


def rendered(tokenizer: Any, turns: Sequence[dict[str, str]]) -> str:
    """Return the chat in the tokenizer's template, up to the start of the assistant's answer.

    If the template refuses the system role, the instructions become the start of the first user message. Raises
    AgentError if it refuses that too.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        if turns[0]["role"] != "system":
            roles = ", ".join(turn["role"] for turn in turns)
            raise AgentError(f"the chat template refuses roles {roles}: {error}") from error
    system, first, *rest = turns
    joined = MERGED.join(text for text in (system["content"], first["content"]) if text)
    return rendered(tokenizer, [{"role": "user", "content": joined}, *rest])


def decoded(tokenizer: Any, rows: Sequence[list[int]]) -> list[str]:
    """Return the text of each row with its leading space, as it reads inside a longer text.

    A SentencePiece tokenizer drops one leading space when it decodes. Decoding the row behind an "a", which is then
    removed, keeps the space.
    """
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    first = tokenizer.decode(anchor, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = tokenizer.batch_decode(
        [anchor + row for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(first) for text in texts]
