"""Between a conversation and a language model: what it is shown (a running text, or a chat) and what it said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from a2a_ray.core.errors import AgentError
from a2a_ray.core.message import Message

MERGED = "\n\n"  # between messages of one role, which many chat templates want as one


def require_text(messages: Sequence[Message], where: str) -> None:
    """Raise AgentError if one of the messages is not text."""
    if vector := next((m for m in messages if not isinstance(m.content, str)), None):
        raise AgentError(
            f"{where}: turn {vector.turn} is a {type(vector.content).__name__}; expected text, because a language"
            " model reads text"
        )


def running_text(texts: Sequence[str], separator: str) -> str:
    """The texts as one, oldest first.

    `separator` stands only where a text ends in punctuation and the next begins without white space. A text that was
    cut inside a word is continued as it is: what a base model wrote goes on as it would have.
    """
    whole = ""
    for text in texts:
        seam = whole[-1:] and text[:1]
        if seam and not (whole[-1].isspace() or whole[-1].isalnum() or seam.isspace()):
            whole += separator
        whole += text
    return whole


def chat(messages: Sequence[Message], name: str, instructions: str | None) -> list[dict[str, str]]:
    """The messages, oldest first, as roles: what `name` said is the assistant's, all else the user's.

    Neighbours of one role are merged; a talk that would begin with the assistant begins with an empty user message, for
    most templates want it so. `instructions` are the system message.
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
    """The chat in the tokeniser's own template, up to where the assistant speaks.

    Where a template refuses it, as those that know no system role do, the instructions lead the first user message.
    Raises AgentError where it refuses that too.
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
    """The text of each row as it stands in a running text.

    A tokeniser of the SentencePiece kind drops one leading space of whatever it decodes; an "a" put before the row, and
    taken off again, keeps it.
    """
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    first = tokenizer.decode(anchor, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    texts = tokenizer.batch_decode(
        [anchor + row for row in rows], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [text.removeprefix(first) for text in texts]
