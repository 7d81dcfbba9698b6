"""The hypothesis strategies of all tests: contents, messages, transcripts, and objects of the exchange format."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2a_ray.core.message import BID, COMBINE, MESSAGE, Content, Message
from a2a_ray.core.transcript import DONE, FAILED, RUNNING, Transcript

names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6).filter(str.isidentifier)
agent_names = st.lists(names, min_size=1, max_size=4, unique=True).map(tuple)
# Lone surrogates are no text: UTF-8 cannot carry them, so neither can a store or a file.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
seeds = st.integers(0, 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)


def vectors(dtype: Any = None, size: int | None = None) -> st.SearchStrategy[Any]:
    """1-D float arrays, float32 or float64, finite; -0.0, subnormals and the largest among them."""
    types = st.sampled_from([np.float32, np.float64]) if dtype is None else st.just(dtype)
    shape = st.integers(1, 5) if size is None else st.just(size)
    return types.flatmap(
        lambda t: shape.flatmap(
            lambda n: hnp.arrays(
                t, n, elements=st.floats(width=np.dtype(t).itemsize * 8, allow_nan=False, allow_infinity=False)
            )
        )
    )


contents: st.SearchStrategy[Content] = texts | vectors()
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
usages = st.fixed_dictionaries(
    {}, optional={"input_tokens": st.integers(0, 9999), "output_tokens": st.integers(0, 9999), "cost": st.floats(0, 9)}
)


@st.composite
def messages(draw: st.DrawFn, history: bool = True) -> Message:
    """Messages of any kind, with every part that they can have."""
    earlier = draw(st.lists(messages(history=False), max_size=2)) if history else []
    return Message(
        conversation=draw(texts),
        turn=draw(st.integers(0, 10**6)),
        sender=draw(names),
        content=draw(contents),
        history=tuple(earlier),
        seed=draw(seeds),
        options=draw(json_objects | st.dictionaries(names, vectors(), max_size=1)),
        usage=draw(usages),
        metadata=draw(json_objects),
        created_at=draw(st.floats(0, 4e9)),
        kind=draw(st.sampled_from([MESSAGE, BID, COMBINE, "action"])),
    )


@st.composite
def transcripts(draw: st.DrawFn, content: st.SearchStrategy[Content] = contents) -> Transcript:
    """Transcripts of messages (no bids or combinations), each by one of the agents in turn, ended or not."""
    agents = draw(agent_names)
    transcript = Transcript(draw(texts), agents, draw(content), draw(seeds))
    for number in range(draw(st.integers(0, 6))):
        sender = agents[number % len(agents)]
        usage = draw(st.just({}) | st.fixed_dictionaries({"output_tokens": st.integers(0, 99)}))
        transcript.append(
            Message(transcript.id, number + 1, sender, draw(content), usage=usage, created_at=draw(st.floats(0, 4e9)))
        )
    transcript.status = draw(st.sampled_from([DONE, FAILED, RUNNING]))
    if transcript.status != RUNNING:
        transcript.reason = draw(texts)
    return transcript


_TURN_KEYS = ("speaker", "text", "kind", "time", "tokens", "vector")
_KEYS = ("id", "turns", "status", "reason", "error")


@st.composite
def exchange_objects(draw: st.DrawFn) -> dict[str, Any]:
    """Conversations as others may write them: optional keys here and there, unknown keys anywhere."""
    extra = st.dictionaries(texts, json_values, max_size=2)
    turns = []
    for _ in range(draw(st.integers(0, 5))):
        turn = {k: v for k, v in draw(extra).items() if k not in _TURN_KEYS}
        turn |= {"speaker": draw(texts), "text": draw(texts)}
        optional = {
            "kind": st.sampled_from(["action", "result"]),
            "time": st.floats(1, 4e9),
            "tokens": st.integers(0, 99),
        }
        turn |= draw(st.fixed_dictionaries({}, optional=optional))
        turns.append(turn)
    value: dict[str, Any] = {k: v for k, v in draw(extra).items() if k not in _KEYS}
    return {**value, "id": draw(texts), "turns": turns}
