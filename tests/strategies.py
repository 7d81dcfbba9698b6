"""The hypothesis strategies of all tests: contents, messages, transcripts, and objects of the exchange format."""

from __future__ import annotations

import string
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2a_ray.analysis.dynamics.affine import LinearAgents, linear_agents
from a2a_ray.core.findings import Finding
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
    seq = draw(st.integers(0, 10**6))
    return Message(
        conversation=draw(texts),
        seq=seq,
        sender=draw(names),
        content=draw(contents),
        history=tuple(earlier),
        seed=draw(seeds),
        options=draw(json_objects | st.dictionaries(names, vectors(), max_size=1)),
        usage=draw(usages),
        metadata=draw(json_objects),
        created_at=draw(st.floats(0, 4e9)),
        kind=draw(st.sampled_from([MESSAGE, BID, COMBINE, "action"])),
        asides=draw(st.integers(0, seq)),
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
_KEYS = ("id", "turns", "opening", "opening_vector", "status", "reason", "error", "stopped_by")


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


# --- negotiations


@st.composite
def games(draw: st.DrawFn, most: int = 14) -> Transcript:
    """Games of two to four parties on up to three issues of three choices; whole offers, parts of one, and none."""
    issues = "ABC"[: draw(st.integers(1, 3))]
    parties = ("ann", "bob", "cid", "dan")[: draw(st.integers(2, 4))]
    transcript = Transcript("game", parties)
    for number in range(1, draw(st.integers(0, most)) + 1):
        named = issues if draw(st.integers(0, 5)) else draw(st.sampled_from(["", issues[:1]]))
        deal = [f"{issue}{draw(st.integers(1, 3))}" for issue in named]
        sender = draw(st.sampled_from(parties))
        transcript.append(Message("game", number, sender, "I offer.", metadata={"deal": deal} if deal else {}))
    return transcript


# --- agents with affine turns


def random_covariance(rng: np.random.Generator, d: int, rank: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(d, d), of that rank, eigenvalues from 0.05 to 1, the largest 1, eigenvectors drawn uniformly."""
    q = np.linalg.qr(rng.normal(size=(d, d)))[0][:, :rank]
    return np.asarray((q * np.append(rng.uniform(0.05, 1, size=rank - 1), 1.0)) @ q.T)


@st.composite
def linear_teams(
    draw: st.DrawFn, agents: tuple[int, int] = (2, 5), dims: tuple[int, int] = (1, 8), singular: bool = False
) -> LinearAgents:
    """Agents with random geometries, objectives, steps below 2 / lambda_max and one to three inner steps.

    Some teams take small steps all, and settle slowly. singular: each geometry of any rank from 1 on, so that some
    share a null space.
    """
    n, d = draw(st.integers(*agents)), draw(st.integers(*dims))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    ranks = rng.integers(1, d + 1, n) if singular else np.full(n, d)
    steps = draw(st.sampled_from([1.0, 0.3, 0.1])) * np.exp(rng.uniform(np.log(0.05), np.log(1.95), n))
    inner = draw(st.lists(st.integers(1, 3), min_size=n, max_size=n))
    covariances = np.stack([random_covariance(rng, d, int(r)) for r in ranks])
    return linear_agents(covariances, rng.normal(size=(n, d)), steps, inner)


# Calibration of detectors

rates = st.sampled_from([0.01, 0.03, 0.05, 0.1, 0.25, 1 / 3, 0.5])
tied_scores = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.5]) | st.floats(0, 5), min_size=1, max_size=8)
"""What the scores of turns are drawn from, with replacement: few values, hence ties, in any proportion."""


@st.composite
def calibrations(draw: st.DrawFn) -> Any:
    """Calibrations with every part that they can have."""
    from a2a_ray.analysis.loops.threshold import AlarmRate, Calibration

    runs = draw(st.integers(1, 999))
    return Calibration(
        threshold=draw(finite),
        rate=draw(rates),
        horizon=draw(st.integers(1, 99)),
        runs=runs,
        shorter=draw(st.integers(0, runs)),
        confidence=draw(st.none() | st.just(0.95)),
        clusters=draw(st.none() | st.integers(1, runs)),
        achieved=draw(st.none() | st.integers(0, runs).map(lambda alarms: AlarmRate.of(alarms, runs))),
        score=draw(texts),
    )


# Inference from trajectories


@st.composite
def settling_rounds(draw: st.DrawFn, dims: tuple[int, int] = (1, 5), fastest: float = 0.1) -> Any:
    """(A, x*, start) of a round x -> x* + A (x - x*): A (d, d), not normal, of spectral radius `fastest` to 0.95."""
    d = draw(st.integers(*dims))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0] + 0.2 * rng.normal(size=(d, d)) / d
    eigenvalues = np.append(draw(st.floats(fastest, 0.95)), rng.uniform(-1, 1, d - 1))
    eigenvalues[1:] *= eigenvalues[0]
    return basis @ np.diag(eigenvalues) @ np.linalg.inv(basis), rng.normal(size=d), 3 * rng.normal(size=d)


# --- populations


@st.composite
def populations(draw: st.DrawFn, pairs: int = 3, **settings: Any) -> Any:
    """Populations of drawn or given pairs with any steps below 2 / lambda_max and one to three inner steps.

    Given geometries have any rank from 1 on. settings: of the PairPopulation, in place of those that are drawn.
    """
    from a2a_ray.analysis.dynamics.pair_population import PairPopulation
    from a2a_ray.analysis.dynamics.pair_sources import DrawnPairs, GivenPairs

    d, rng = draw(st.integers(2, 8)), np.random.default_rng(draw(st.integers(0, 10**6)))
    source: Any
    if draw(st.booleans()):
        condition, angle = draw(st.floats(1, 20)), draw(st.floats(0, 180))
        kind = draw(st.sampled_from(["own", "pair", "all"]))
        seed, first = draw(st.integers(0, 10**6)), draw(st.integers(0, 600))
        source = DrawnPairs(
            pairs, d, seed, (condition, 3.0), eigenvectors=kind, angles=(0.0, angle), norms=(1.0, 2.0), first=first
        )
    else:
        covariances = [
            np.stack([random_covariance(rng, d, int(rng.integers(1, d + 1))) for _ in range(pairs)]) for _ in "wu"
        ]
        source = GivenPairs(*covariances, rng.normal(size=(pairs, d)), rng.normal(size=d))
    drawn = {
        "step_w": draw(st.floats(0.05, 1.9)),
        "step_u": rng.uniform(0.05, 1.9, pairs),
        "inner_steps_w": draw(st.integers(1, 3)),
        "inner_steps_u": draw(st.integers(1, 3)),
        "start": draw(st.sampled_from([None, rng.normal(size=d), rng.normal(size=(pairs, d))])),
    }
    return PairPopulation(source, **{**drawn, **settings})


# --- loops

_VOCABULARY = ["".join(np.random.default_rng(i).choice(list("abcdefghiklmnoprstuvw"), 3 + i % 6)) for i in range(2000)]


@st.composite
def planted_cycles(draw: st.DrawFn) -> tuple[list[str], int, int]:
    """Turns that begin with news and then go round five times; the turn (from 1) of the cycle's first, and its period.

    Any period from 1 to 12. A cycle of one turn has 16 words or more: a shorter one is found later.
    """
    period, rng = draw(st.integers(1, 12)), np.random.default_rng(draw(st.integers(0, 10**6)))
    words = draw(st.integers(16 if period == 1 else 8, 60))

    def turn() -> list[str]:
        return list(rng.choice(_VOCABULARY, words))

    lead, cycle = [turn() for _ in range(draw(st.integers(0, 6)))], [turn() for _ in range(period)]
    return [" ".join(t) for t in lead + cycle * 5], len(lead) + 1, period


def random_talk(rng: np.random.Generator, turns: int, words: int = 20) -> list[str]:
    """Turns of words drawn as often as they come in a language (Zipf's law), from a vocabulary of 2 000."""
    share = 1 / np.arange(3, len(_VOCABULARY) + 3)
    return [" ".join(rng.choice(_VOCABULARY, rng.integers(1, 2 * words), p=share / share.sum())) for _ in range(turns)]


# --- budgets


class PlannedCall(NamedTuple):
    """A call that a worker makes at a time. It lasts `seconds`, may take `need` tokens, and takes `tokens`."""

    at: float
    seconds: float
    need: int
    tokens: int


@st.composite
def planned_calls(draw: st.DrawFn) -> list[list[PlannedCall]]:
    """The calls of one to three workers, in order: some all at once, some spread out."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    workers, calls = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    spread = draw(st.sampled_from([0.0, 1.0, 40.0, 150.0]))
    longest = draw(st.sampled_from([0.2, 3.0, 20.0]))

    def plan() -> PlannedCall:
        need = int(rng.integers(1, 400))
        return PlannedCall(
            float(rng.uniform(0, spread)), float(rng.uniform(0, longest)), need, int(rng.integers(0, need + 1))
        )

    return [sorted(plan() for _ in range(calls)) for _ in range(workers)]


@st.composite
def findings(draw: st.DrawFn) -> Finding:
    """Findings of any analyzer, with every part that they can have."""
    turn = st.none() | st.integers(0, 10**6)
    return Finding(
        conversation_id=draw(texts),
        analyzer=draw(names),
        analyzer_version=draw(texts),
        settings=draw(json_objects),
        number=draw(st.integers(1, 9)),
        through_seq=draw(st.integers(0, 10**6)),
        kind=draw(texts),
        status=draw(texts),
        reason=draw(texts),
        onset_turn=draw(turn),
        alarm_turn=draw(turn),
        recovered_turn=draw(turn),
        period=draw(turn),
        score=draw(st.none() | st.floats()),
        threshold=draw(st.none() | st.floats()),
        p_value=draw(st.none() | st.floats(0, 1)),
        interval=draw(st.none() | st.tuples(st.floats(), st.floats())),
        span=draw(texts),
        earlier_span=draw(texts),
        speakers=tuple(draw(st.lists(names, max_size=3))),
        tokens_since_onset=draw(turn),
        evidence=draw(json_objects),
    )
