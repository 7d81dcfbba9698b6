"""The loop detector's words: what of a turn is copied, and what that says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from a2a_ray.analysis.loops.lexical import WINDOW, CopiedWords, WordHistory
from a2a_ray.analysis.loops.tokenize import words
from a2a_ray.analysis.loops.turn_scores import shortens_list, word_score
from tests.strategies import random_talk

TOPIC = (
    "The harbour was frozen until March, so the fishermen mended nets in the school and told the children about storms"
    " that had thrown whole boats onto the market square"
)


def copies(*said: str) -> list[CopiedWords]:
    history = WordHistory()
    return [history.add(*words(text)) for text in said]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Version 2.1 at 12:30 of f3a9", ["version", "#", "#", "at", "#", "#", "of", "#"]),
        ("Don't STOP", ["don", "t", "stop"]),
        ("ÉTÉ Straße", ["été", "strasse"]),
        ("猫は鳴いた", ["猫", "は", "鳴", "い", "た"]),
        ("👍👍!", ["👍", "👍", "!"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("a" * 30, ["a" * 12, "a" * 12, "a" * 6]),
        (" \n\t", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text)[0] == expected


def test_numbers_are_kept_as_they_were_written() -> None:
    assert words("7 of 10 files, id a8")[1] == ["7", "10", "a8"]


def test_new_text_is_new_and_a_copy_costs_as_much_as_pointing() -> None:
    first, copy, again = copies(TOPIC, TOPIC, TOPIC)
    assert (first.novelty, first.words, first.new) == (1.0, 29, 29)
    assert (copy.novelty, copy.new, copy.again) == (pytest.approx(0.5 / 29), 0, 0.0)
    assert (again.novelty, again.again) == (0.0, 1.0)


def test_scattered_words_and_stock_phrases_save_nothing() -> None:
    shuffled = TOPIC.split()
    random.Random(4).shuffle(shuffled)
    quoted = "As I said in the morning, the fishermen mended nets, which takes patience and very thin cold fingers"
    assert copies(TOPIC, " ".join(shuffled))[1].novelty > 0.9
    assert copies(TOPIC, quoted)[1].novelty > 0.85


def test_a_passage_is_found_wherever_turns_are_cut() -> None:
    said = TOPIC.split()
    found = copies(TOPIC, " ".join([*said[17:], *said[:11]]), " ".join(said[11:]))
    assert found[1].novelty < 0.3  # two places to point at
    assert found[2].novelty < 0.2


def test_swapped_words_and_changed_numbers() -> None:
    swapped = TOPIC.replace("school", "church").replace("storms", "floods")
    found = copies(TOPIC, swapped)[1]
    assert (found.new, found.swapped, found.fresh) == (2, 2, 0)
    assert found.novelty < 0.15
    counted = copies(
        "Report number 12 of the northern office is ready", "Report number 13 of the northern office is ready"
    )
    assert counted[1].changed == 1
    assert counted[1].novelty == pytest.approx(1 / 9 + 0.5 / 9 - 0.5 / 9, abs=0.06)


def test_text_longer_than_the_window_is_forgotten() -> None:
    rng = np.random.default_rng(3)
    said = [TOPIC, *random_talk(rng, 3 * WINDOW // 20, 20), TOPIC]
    assert copies(*said)[-1].novelty > 0.9
    assert copies(*said[-300:-1], TOPIC, *said[1:100], TOPIC)[-1].novelty < 0.1


def test_progress_outweighs_a_quotation() -> None:
    addition = (
        "what nobody had told them is that the ice breaker was sold in autumn to pay for the new roof of the church"
    )
    grown = copies(TOPIC, f"{TOPIC}; {addition} and for two bells made of bronze")[1]
    assert word_score(grown) < 0
    assert word_score(copies(TOPIC, f"{TOPIC} too")[1]) > 0.4


def test_a_list_that_is_worked_off() -> None:
    towns = ["Lund", "Gera", "Brest in the west", "Turku by the sea", "Porto", "Graz"]

    def ask(left: list[str]) -> str:
        return f"Please check the opening hours of the museums in {', '.join(left)} and tell me which open on Monday."

    found = copies(ask(towns), ask(towns[2:]), ask(towns[3:]), ask(towns[3:]), f"{ask(towns[3:])} And hurry.")
    assert [shortens_list(copied) for copied in found] == [False, True, True, False, False]
    assert found[1].left_out == 2
    assert found[2].left_out == 4


def test_a_whole_turn_that_is_said_again_with_a_word_swapped() -> None:
    said = "the boats in the harbour wait for ice to melt this week"
    again = said.replace("melt", "break")
    first, passage = copies(said, again)[1], copies(said, f"at last {again} perhaps")[1]
    assert (first.framed, passage.framed) == (True, False)
    assert word_score(first) > 0.7 > word_score(copies(said, f"{again} too")[1])
    edge = copies(said, said.replace("the boats", "some barges"))[1]
    assert (edge.framed, edge.swapped) == (True, 2)
