"""What holds of any talk: planted cycles are found, names do not matter, a copy of the state goes on the same."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from a2a_ray.analysis.loops import LoopDetector, scan
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.core.verdict import ObserverVerdict
from tests.strategies import planted_cycles, random_talk, texts


def transcript(said: list[str], speakers: list[int] | None = None, names: str = "abc") -> Transcript:
    talk = Transcript("t", tuple(names))
    for i, text in enumerate(said):
        talk.append(Message("t", i + 1, names[speakers[i] if speakers else i % 2], text))
    return talk


class Read(NamedTuple):
    """A scan in few words; the alarm as an index from 0."""

    verdicts: list[ObserverVerdict]
    scores: list[float]
    alarm: int | None
    finding: dict[str, Any] | None


def read(talk: Transcript) -> Read:
    found = scan(talk)
    loop = found.loop
    if loop is None or loop.alarm_turn is None:
        return Read(found.verdicts, found.scores, None, None)
    finding = {"onset": loop.onset_turn, "period": loop.period}
    return Read(found.verdicts, found.scores, loop.alarm_turn - 1, finding)


@given(planted_cycles(), st.data())
def test_a_planted_cycle_is_found_by_the_end_of_its_fifth_round(
    planted: tuple[list[str], int, int], data: st.DataObject
) -> None:
    said, first, period = planted
    speakers = data.draw(st.lists(st.integers(0, 2), min_size=len(said), max_size=len(said)))
    found = read(transcript(said, speakers))
    assert found.alarm is not None
    assert found.finding is not None
    assert found.alarm + 1 >= first + period - 2, "before anything was repeated"
    assert first + period - 2 <= found.finding["onset"] <= first + 2 * period + 1
    assert found.finding["period"] == period


@given(planted_cycles(), st.integers(0, 10**6))
def test_wherever_the_running_text_is_cut_into_turns(planted: tuple[list[str], int, int], seed: int) -> None:
    said, first, period = planted
    assume(len(said[-1].split()) >= 20)  # of shorter turns, cut anew, too few sequences of five words are whole
    if period == 1:
        said = [*said, *said[-2:]]  # cut anew, five rounds of one turn can be four turns
    rng = np.random.default_rng(seed)
    stream = [word for text in said[first - 1 :] for word in text.split()]
    typical = len(stream) / len(said[first - 1 :])
    cut: list[str] = []
    while stream:
        size = int(rng.integers(0.6 * typical, 1.4 * typical + 1))
        cut.append(" ".join(stream[:size]))
        stream = stream[size:]
    found = read(transcript(said[: first - 1] + cut))
    assert found.alarm is not None


@given(planted_cycles(), st.permutations("abc"), st.integers(0, 10**6))
def test_names_do_not_matter(planted: tuple[list[str], int, int], names: list[str], seed: int) -> None:
    said = [*random_talk(np.random.default_rng(seed), 6), *planted[0][:20]]
    speakers = [int(x) for x in np.random.default_rng(seed).integers(0, 3, len(said))]
    one, other = read(transcript(said, speakers)), read(transcript(said, speakers, "".join(names)))
    assert one.scores == other.scores
    assert [v.status for v in one.verdicts] == [v.status for v in other.verdicts]


@given(st.lists(texts, max_size=8), planted_cycles(), st.integers(0, 30))
def test_a_pickled_state_goes_on_the_same(first: list[str], planted: tuple[list[str], int, int], at: int) -> None:
    talk = transcript([*first, *planted[0]])
    detector = LoopDetector()
    for message in talk.turns[:at]:
        detector.update(message)
    copy = pickle.loads(pickle.dumps(detector))
    for message in talk.turns[at:]:
        assert copy.update(message) == detector.update(message)
        assert copy.score == detector.score


@given(st.lists(texts | st.text(max_size=400), max_size=12))
def test_any_text_gets_a_verdict(said: list[str]) -> None:
    found = read(transcript(said))
    assert all(v.status in ("none", "warning", "loop", "recovered") for v in found.verdicts)
    assert all(0 <= score <= 4 for score in found.scores)


def test_random_talks_do_not_alarm() -> None:
    rng = np.random.default_rng(12)
    found = [read(transcript(random_talk(rng, 40))) for _ in range(200)]
    assert [scan.alarm for scan in found if scan.alarm is not None] == []


@pytest.mark.slow
def test_random_talks_of_short_turns_do_not_alarm() -> None:
    rng = np.random.default_rng(13)
    alarms = [read(transcript(random_talk(rng, 60, words=4))).alarm for _ in range(1000)]
    assert sum(alarm is not None for alarm in alarms) <= 1
