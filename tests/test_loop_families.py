"""The families of loops one by one: copied turns, repeated rounds of calls, empty speech acts."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from a2a_ray.analysis.loops import LoopDetector, scan
from a2a_ray.analysis.loops.act_lexicon import LANGUAGES, ActLexicon, act_lexicon
from a2a_ray.analysis.loops.copies import CopiedTurns
from a2a_ray.analysis.loops.empty_acts import is_empty
from a2a_ray.analysis.loops.tokenize import ID, words
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from tests.talks import message


def scores(said: list[Any]) -> list[float]:
    """Return the score after each turn: texts are messages, pairs are (kind, text), triples have a call id as well."""
    detector, found = LoopDetector(), []
    for turn, each in enumerate(said, 1):
        kind, text, *id = ("message", each) if isinstance(each, str) else each
        detector.update(message(turn, text, kind=kind, metadata={"call_id": id[0]} if id else {}))
        found.append(detector.score)
    return found


def looped(said: list[Any]) -> bool:
    return max(scores(said)) > 1


# --- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't open it, please!", ["don't", "open", "it", "please"]),
        ("Page 3 of 12", ["page", "3", "of", "12"]),
        ("commit 8f3a9c51d2", ["commit", ID]),
        ("猫は寝る", ["猫", "は", "寝", "る"]),
        ("Über die Brücke", ["über", "die", "brücke"]),
        ("?!", ["?", "!"]),
        (" \n", []),
        ("x" * 30, ["x" * 12, "x" * 12, "x" * 6]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


# --- copied turns

PASSAGE = "the clerk counted the stamps and wrote the number on a card before the next visitor rang the bell again"
NEWS = "nobody had told the captain that the lighthouse on the northern rocks would stay dark for a whole week"


def copied(*said: str) -> CopiedTurns:
    copies = CopiedTurns()
    for turn, text in enumerate(said, 1):
        copies.add(turn, "ann", text, words(text), 10 * turn)
    return copies


def test_a_turn_is_new_or_copied_by_its_sequences_of_words() -> None:
    assert copied(PASSAGE, "x y z", NEWS).novelty == 1
    assert copied(PASSAGE, "x y z", PASSAGE).novelty == 0
    half = " ".join([*PASSAGE.split()[:10], *NEWS.split()[:10]])
    assert 0.5 < copied(PASSAGE, "x y z", half).novelty < 0.7
    assert copied(PASSAGE, half).novelty == 1, "an answer may echo its question"


def test_the_onset_is_the_first_repeated_turn_of_the_run() -> None:
    found = copied(NEWS, PASSAGE, *[PASSAGE] * 3).sum
    assert found.score > 1
    evidence = found.evidence(100)
    assert (evidence["onset_turn"], evidence["first_repeats_turn"], evidence["period"]) == (3, 2, 1)
    assert evidence["kind"] == "verbatim"


def test_what_is_out_of_the_window_is_forgotten() -> None:
    others = [f"{word} {NEWS[i:]} {word}" for i, word in enumerate("abcdefghijklmno")]
    assert copied(PASSAGE, *others).novelty < 1
    assert copied(PASSAGE, *[chr(0x4E00 + i) * 6 for i in range(13)], PASSAGE).novelty == 1


def test_a_copy_of_the_state_goes_on_the_same() -> None:
    first = copied(NEWS, PASSAGE, NEWS)
    second: CopiedTurns = pickle.loads(pickle.dumps(first))
    for copies in (first, second):
        copies.add(4, "bob", PASSAGE, words(PASSAGE), 40)
    assert (first.sum, first.novelty) == (second.sum, second.novelty)


def test_equal_lines_within_one_message() -> None:
    assert looped(["Here it is.\n" + "The table was updated.\n" * 6])
    assert not looped(["Here it is.\n" + "The table was updated.\n" * 3])
    assert not looped(["\n".join(f"- The supplier offers a box number {i}" for i in range(20))])
    assert not looped(["\n".join(["---"] * 20)])


# --- rounds of calls


def rounds(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    return [turn for call, result in pairs for turn in (("action", call), ("result", result))]


def test_the_same_call_with_the_same_result_three_times() -> None:
    assert looped(rounds(*[("read(a)", "no such file")] * 3))
    assert not looped(rounds(*[("read(a)", "no such file")] * 2))
    assert not looped(rounds(("read(a)", "x = 1"), ("read(a)", "x = 2"), ("read(a)", "x = 3"), ("read(a)", "x = 4")))


def test_parallel_calls_are_paired_by_id_or_in_order() -> None:
    step = ["first", "second", "third", "fourth", "fifth"]
    by_id = [
        turn
        for i, word in enumerate(step)
        for turn in (
            ("action", f"left({word})", f"l{i}"),
            ("action", f"right({word})", f"r{i}"),
            ("result", f"{word} of the right", f"r{i}"),
            ("result", f"{word} of the left", f"l{i}"),
        )
    ]
    assert max(scores(by_id)) == 0
    assert looped(by_id[:4] * 3)
    in_order = [(kind, text) for kind, text, _ in by_id]
    assert not looped(in_order)
    same = [("action", "left()"), ("action", "right()"), ("result", "none"), ("result", "none")]
    assert looped(same * 4)


def test_call_ids_of_a_file_are_read() -> None:
    """Two calls are made twice in parallel. Their results are the same again, and arrive in the other order."""
    calls = {"left": "no rows", "right": "access denied"}
    turns = []
    for step, order in enumerate((["left", "right"], ["right", "left"])):
        turns += [{"kind": "action", "text": f"{name}()", "call_id": f"{name}{step}"} for name in calls]
        turns += [{"kind": "result", "text": calls[name], "call_id": f"{name}{step}"} for name in order]
    without = [{key: value for key, value in turn.items() if key != "call_id"} for turn in turns]
    with_ids, in_order = (
        scan(Transcript.from_exchange({"turns": [{"speaker": "agent", **turn} for turn in each]}))
        for each in (turns, without)
    )
    assert with_ids.loop is not None
    assert in_order.loop is None


def test_a_thought_before_each_call_gets_no_result() -> None:
    assert looped([("action", "think"), ("action", "read(a)"), ("result", "no such file")] * 4)


def test_another_commit_is_another_result() -> None:
    assert not looped(rounds(*[("deploy()", f"now at {c}8f3a9c51d2") for c in "abcdef"]))
    assert looped(rounds(*[(f"deploy({c}8f3a9c51d2)", "now at 7") for c in "abcdef"]))


def test_a_blocked_call_with_a_varying_argument() -> None:
    folders = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    assert looped(rounds(*[(f"write the file to the folder {f}", "error: permission denied") for f in folders]))
    assert not looped(rounds(*[(f"write the file to the folder {f}", f"wrote {f}, 12 kB") for f in folders]))


def test_polls_before_progress() -> None:
    assert not looped([*rounds(*[("poll(17)", "")] * 5), *rounds(("poll(17)", "ready"))])
    assert not looped(rounds(*[("status(17)", "still running")] * 5, ("status(17)", "done")))
    assert looped(rounds(*[("status(17)", "still running")] * 9))


def test_a_list_that_is_worked_off() -> None:
    fruits = ["apples", "pears", "plums", "figs", "dates", "limes", "grapes", "kiwis"]
    assert not looped(rounds(*[(f"remove the label from the box of {fruit}", "") for fruit in fruits]))
    assert not looped(rounds(*[(f"rename scan_{i} to page_{i}", "ok") for i in range(12)]))


def test_a_time_of_zero_is_unknown() -> None:
    """Equal calls a minute apart wait; a call without a time is not ages before the next."""
    detector = LoopDetector()
    for turn, (time, kind, text) in enumerate(
        [(at, *each) for at in (0.0, 1.8e9) for each in rounds(("job_status(17)", "no such job"))], 1
    ):
        detector.update(Message("c", turn, "ann", text, kind=kind, created_at=time))
    assert detector.score > 0


# --- empty speech acts


@pytest.mark.parametrize(
    ("sentence", "empty"),
    [
        ("Thank you so much, take care!", True),
        ("You're very welcome!", True),
        ("Let me know if you need anything else.", True),
        ("I completely agree with you.", True),
        ("What a beautiful and profound moment in our conversation.", True),
        ("Goodbye!", True),
        ("The bridge was closed for repairs.", False),
        ("Thank you, the invoice of 312 euros arrived on Monday.", False),
        ("Is it possible to pay in two parts?", False),
        ("I appreciate your help, but the refund never arrived.", False),
        ("Not at the moment, but thank you for asking.", True),
        ("Please let me know which seat you prefer.", False),
        ("", False),
    ],
)
def test_empty_sentences(sentence: str, empty: bool) -> None:
    assert is_empty(sentence.lower(), len(sentence.split()), act_lexicon("en")) is empty


def test_goodbyes_without_end() -> None:
    said = ["Thank you, goodbye!", "You too, take care!", "Have a lovely evening!", "See you soon, all the best!"]
    assert looped(["Shall we meet on Friday at six?", "Friday at six, at the north gate.", *said * 3])
    assert not looped(["Shall we meet on Friday at six?", "Friday at six, at the north gate.", *said])


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_list_of_the_lexicon_is_there(language: str) -> None:
    lists = act_lexicon(language)
    assert all(getattr(lists, name).pattern for name in ActLexicon._fields)
    assert all(pattern.pattern == pattern.pattern.lower() for pattern in lists), "the text is in lower case"
