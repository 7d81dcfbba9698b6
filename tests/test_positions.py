"""Positions from words: numbers in answers, parsed offers, and whether the parties of a negotiation settled."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.analysis.equilibria.negotiation import has_offers, negotiation
from a2a_ray.analysis.equilibria.negotiation_analyzer import NegotiationAnalyzer
from a2a_ray.analysis.equilibria.positions import (
    issues_of,
    numbers,
    offer_distance,
    offers,
    positions_from_numbers,
    positions_from_offers,
    read_offer,
)
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding, from_row, to_arrow
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.report.analyze_source import analyze_source
from a2a_ray.report.negotiation_figure import (
    disagreement_figure,
    negotiation_section,
    negotiations_of,
    outcome_table,
)
from a2a_ray.report.report_page import render_report
from a2a_ray.report.report_source import report_data
from a2a_ray.report.study_page import Study, write_study
from a2a_ray.transcripts.jsonl import read_jsonl, write_jsonl
from tests.strategies import finite, games


def talk(*said: tuple[str, Any], kinds: dict[int, str] | None = None) -> Transcript:
    """A conversation of (speaker, text or vector, or deal)."""
    transcript = Transcript("c", tuple(dict.fromkeys(name for name, _ in said)))
    for number, (name, what) in enumerate(said, 1):
        deal = isinstance(what, list | dict)
        kind = (kinds or {}).get(number, "message")
        metadata = {"deal": what} if deal else {}
        transcript.append(Message("c", number, name, "An offer." if deal else what, metadata=metadata, kind=kind))
    return transcript


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no number", []),
        ("", []),
        ("I offer 12, then 13.", [12, 13]),
        ("1,234.5 and 12,345,678", [1234.5, 12345678]),
        ("1,2345", [1, 2345]),
        ("1,2,3 and [100, 200]", [1, 2, 3, 100, 200]),
        (".5, 0.5, 5.", [0.5, 0.5, 5]),
        ("so...3", [3]),
        ("-3 and −3 and +3", [-3, -3, 3]),
        ("10-20, a - 3, (4)-5, x=-6", [10, 20, 3, 4, 5, -6]),
        ("1e3 1.5E-2 2e+1", [1000, 0.015, 20]),
        ("1e999 7", [7]),
        ("12% of $1.5M, -$3, $-4, €5.50", [12, 1.5e6, -3, -4, 5.5]),
        ("1.5k 2K 3M 4B 5bn 6m 7kg 8Million", [1500, 2000, 3e6, 4e9, 5e9, 6, 7, 8]),
        ("3 million, 2-billion deal, 4 thousandths", [3e6, 2e9, 4]),
        ("A1 GPT-4 Q3 x_7 v1.2", []),
        ("1.2.3", [1.2]),
        ("2024-05-06", [2024, 5, 6]),
        ("1. First: 40\n2. Second: 50", [1, 40, 2, 50]),
        ("the 2nd of 3", [2, 3]),
    ],
)
def test_numbers_in_running_text(text: str, found: list[float]) -> None:
    assert numbers(text) == found


@given(st.lists(finite, max_size=5), st.sampled_from([", ", " and ", "\n", " is not ", "; "]))
def test_numbers_are_read_back_in_any_company(values: list[float], between: str) -> None:
    for form in ("{!r}", "{:.17g}", "{:,.4f}"):
        written = [form.format(v) for v in values]
        assert numbers(f"We say {between.join(written)} today.") == [float(w.replace(",", "")) for w in written]


def test_a_pattern_says_which_numbers_are_meant() -> None:
    text = "In 2024 the price of $1,200 rose to a price of 1.3k; delivery in 3 weeks."
    assert numbers(text, r"price of (\S+)") == [1200, 1300]
    assert numbers(text, r"\d+ weeks") == [3]
    assert numbers(text, r"price of (\D+)|x(y)?") == []
    assert numbers("none", r"price of (\S+)") == []


# --- positions from numbers ---------------------------------------------------------------------------------------


def test_positions_by_agent_with_gaps() -> None:
    said = talk(
        ("ann", "I ask 100."), ("bob", "No."), ("ann", "95 or 90"), ("bob", "80"), ("ann", "Hm."), ("bob", "85")
    )
    found = positions_from_numbers(said)
    assert found["ann"].turns == (1, 3, 5)
    np.testing.assert_array_equal(found["ann"].values, [[100], [90], [math.nan]])
    assert (found["ann"].missing, found["bob"].missing) == ((5,), (2,))
    np.testing.assert_array_equal(found["ann"].standing(), [[100], [90], [90]])
    np.testing.assert_array_equal(found["bob"].standing(), [[80], [85]])
    np.testing.assert_array_equal(found["ann"].stated(), [[100], [90]])
    assert positions_from_numbers(said, which="first")["ann"].values[1] == 95
    assert positions_from_numbers(said, which="all")["ann"].missing == (3, 5)
    both = positions_from_numbers(said, 2, "all")["ann"]
    assert (both.missing, both.values[1].tolist(), both.axes) == ((1, 5), [95, 90], ("number 1", "number 2"))
    assert positions_from_numbers(said, pattern=r"ask (\d+)")["ann"].missing == (3, 5)


def test_vectors_actions_and_silence() -> None:
    said = talk(("ann", np.array([1.0, 2.0])), ("bob", "3 and 4"), ("ann", "5 6"), ("bob", "7 8"), kinds={3: "action"})
    found = positions_from_numbers(said, 2)
    assert found["ann"].values.tolist() == [[1, 2]]
    assert found["bob"].values.tolist() == [[3, 4], [7, 8]]
    assert positions_from_numbers(said, 3)["ann"].missing == (1,)
    empty = positions_from_numbers(Transcript("c", ("ann",)), 2)["ann"]
    assert (empty.values.shape, empty.standing().shape, empty.missing) == ((0, 2), (0, 2), ())
    silent = positions_from_numbers(talk(("ann", "Hm.")))["ann"]
    assert silent.standing().shape == silent.stated().shape == (0, 1)


def test_bad_settings() -> None:
    said = talk(("ann", "1"))
    for call, sentence in (
        (lambda: positions_from_numbers(said, 0), "dim: 0; expected at least 1"),
        (lambda: positions_from_numbers(said, which="lats"), "which: .* Did you mean 'last'"),  # type: ignore[arg-type]
        (lambda: positions_from_offers(said, "onehot"), "encoding: .* Did you mean 'one_hot'"),  # type: ignore[arg-type]
        (lambda: positions_from_offers(said), "transcript: none of its 1 turns has an offer under 'deal'"),
        (lambda: negotiation(said, 3, 1), "in_a_row: 3, parties: 1; expected"),
        (lambda: negotiation(said, 2, 3), "in_a_row: 2, parties: 3; expected"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            call()


# --- offers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deal", "offer"),
    [
        (["A1", "B12"], {"A": 1, "B": 12}),
        ("<DEAL> A1, B2, C4 </DEAL>", {"A": 1, "B": 2, "C": 4}),
        (["D2", "B1"], {"B": 1, "D": 2}),
        (["andE3", "F2.", "C2(unionquotaof2:1)", "optionB2"], {"B": 2, "C": 2, "E": 3, "F": 2}),
        (["C2orC3", "A1", "A1"], {"A": 1}),
        (["D2.5", "GPT4", "E1.", ""], {"E": 1}),
        (
            {"price": 3, "delivery": "fast", "terms": None, "extras": ["a"], "odd": math.nan},
            {"price": 3, "delivery": "fast"},
        ),
        ([1, None], {}),
        (None, {}),
        (5, {}),
    ],
)
def test_offers_are_read_issue_by_issue(deal: object, offer: dict[str, Any]) -> None:
    assert read_offer(deal) == offer


def test_issues_are_those_that_most_offers_name() -> None:
    made = offers(talk(("ann", ["A1", "B1"]), ("bob", ["A1", "B2"]), ("ann", ["A2", "B2", "G9"]), ("bob", "No deal.")))
    assert [(o.turn, o.speaker) for o in made] == [(1, "ann"), (2, "bob"), (3, "ann")]
    assert issues_of(made) == ("A", "B")
    assert issues_of([]) == ()


def test_distance_of_two_offers() -> None:
    assert offer_distance({"A": 1, "B": 2}, {"A": 1, "B": 3}, "AB") == 0.5
    assert offer_distance({"A": 1, "B": 2}, {"A": 1}, "AB") == 0
    assert math.isnan(offer_distance({"A": 1}, {"B": 1}, "AB"))


def test_encodings() -> None:
    said = talk(
        ("ann", {"price": 10, "when": "now"}),
        ("bob", "Hm."),
        ("ann", {"price": 9}),
        ("bob", {"price": 10, "when": "later"}),
    )
    one_hot = positions_from_offers(said)
    assert one_hot["ann"].axes == ("price=9", "price=10", "when=later", "when=now")
    np.testing.assert_array_equal(one_hot["ann"].values, [[0, 1, 0, 1], [1, 0, math.nan, math.nan]])
    np.testing.assert_array_equal(one_hot["bob"].values, [[math.nan] * 4, [0, 1, 1, 0]])
    np.testing.assert_array_equal(one_hot["ann"].standing(), [[0, 1, 0, 1], [1, 0, 0, 1]])
    ordinal = positions_from_offers(said, "ordinal", {"price": [8, 9, 10], "when": ["now", "soon"]})
    assert ordinal["bob"].axes == ("price", "when")
    np.testing.assert_array_equal(ordinal["ann"].values, [[2, 0], [1, math.nan]])
    np.testing.assert_array_equal(ordinal["bob"].values, [[math.nan] * 2, [2, math.nan]])
    other = Transcript.from_exchange({"turns": [{"speaker": "ann", "text": "Mine.", "offer": ["A1"]}]})
    assert positions_from_offers(other, key="offer")["ann"].values.tolist() == [[1]]


@given(games())
def test_one_hot_offers_lie_as_far_apart_as_they_differ(game: Transcript) -> None:
    result = negotiation(game)
    if not result.made:
        return
    positions = positions_from_offers(game)
    where = {turn: row for p in positions.values() for turn, row in zip(p.turns, p.values, strict=True)}
    for a, b in combinations(result.made, 2):
        squared = float(((where[a.turn] - where[b.turn]) ** 2).sum())
        assert squared / 2 / len(result.issues) == pytest.approx(offer_distance(a.choices, b.choices, result.issues))


# --- settled or not -----------------------------------------------------------------------------------------------

X, Y, Z = ["A1", "B1"], ["A1", "B2"], ["A2", "B2"]


@pytest.mark.parametrize(
    ("deals", "status", "row", "supporters", "since", "left", "agreeing"),
    [
        ([("ann", X), ("bob", X), ("cid", X)], "settled", 3, 3, 1, 0, 3),
        ([("ann", X), ("bob", Y), ("cid", X), ("bob", X), ("ann", X)], "settled", 3, 3, 3, 0, 3),
        ([("ann", Y), ("bob", X), ("ann", X), ("bob", X), ("cid", "No.")], "settled", 3, 2, 2, 0, 2),
        ([("cid", X), ("ann", Y), ("ann", Y), ("ann", Y)], "not settled", 3, 1, 2, 0, 1),
        ([("ann", X), ("bob", X), ("cid", X), ("ann", Y)], "not settled", 1, 1, 4, 1, 1),
        ([("ann", X), ("bob", X), ("cid", "Hm."), ("ann", X)], "settled", 3, 2, 1, 0, 2),
        ([("ann", X), ("bob", X), ("cid", ["A1"]), ("ann", X)], "settled", 3, 2, 1, 0, 2),
        ([("ann", X), ("bob", Y), ("cid", Z)], "not settled", 1, 1, 3, 0, 1),
        ([("ann", X), ("ann", X), ("ann", X)], "too few offers", 3, 1, 1, 0, 1),
        ([("ann", X), ("bob", X)], "too few offers", 2, 2, 1, 0, 2),
        ([("ann", "Hello."), ("bob", "Hello.")], "too few offers", 0, 0, None, 0, 0),
        ([], "too few offers", 0, 0, None, 0, 0),
    ],
)
def test_the_rule(
    deals: list[Any], status: str, row: int, supporters: int, since: int | None, left: int, agreeing: int
) -> None:
    game = negotiation(talk(*deals))
    assert (game.status, game.in_a_row, game.supporters) == (status, row, supporters)
    assert (game.since, game.left, game.agreeing) == (since, left, agreeing)
    assert json.loads(json.dumps(game.to_dict()))["status"] == status


def test_disagreement_is_the_mean_over_pairs_of_parties() -> None:
    game = negotiation(talk(("ann", X), ("bob", Y), ("cid", "Hm."), ("cid", Z), ("ann", Z), ("bob", Z)))
    np.testing.assert_allclose(game.disagreement, [math.nan, 0.5, 0.5, 2 / 3, 1 / 3, 0])
    assert game.agreeing == len(game.parties)


@given(games(), st.integers(2, 5), st.data())
def test_what_the_status_follows_from(game: Transcript, row: int, data: st.DataObject) -> None:
    result = negotiation(game, row)
    renamed = Transcript("game", tuple(name.upper() for name in game.agents))
    for m in game.turns:
        deal = [chr(ord(code[0]) + 3) + str(int(code[1:]) % 3 + 5) for code in m.metadata.get("deal", [])]
        renamed.append(Message("game", m.turn, m.sender.upper(), m.content, metadata={"deal": deal} if deal else {}))
    other = negotiation(renamed, row)
    np.testing.assert_array_equal(other.disagreement, result.disagreement)
    for name in ("status", "in_a_row", "supporters", "since", "left", "agreeing", "partial"):
        assert getattr(other, name) == getattr(result, name)
    if result.made:  # the same whole offer by everybody in turn settles any game
        deal = [f"{issue}{choice}" for issue, choice in data.draw(st.sampled_from(result.made)).choices.items()]
        for number in range(len(game) + 1, len(game) + row + 1):
            sender = game.agents[number % len(game.agents)]
            game.append(Message("game", number, sender, "Agreed.", metadata={"deal": deal}))
        settled = negotiation(game, row)
        assert (settled.status, settled.in_a_row >= row) == ("settled", True)
        assert settled.left >= result.left
    assert negotiation(game, row + 1).left <= negotiation(game, row).left


def test_a_negotiation_is_told_by_its_turns() -> None:
    assert has_offers(talk(("ann", X)))
    assert not has_offers(talk(("ann", "A1, B1")))


# --- figure and data ----------------------------------------------------------------------------------------------


def finding(*deals: Any) -> Finding:
    """Of a negotiation, after a way through JSON: the figures are drawn from stored findings."""
    (found,) = NegotiationAnalyzer().findings(talk(*deals))
    return Finding.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))


def two_games() -> list[Finding]:
    settled = finding(("ann", X), ("bob", Y), ("ann", Y), ("bob", Y))
    return [settled, finding(("ann", X), ("bob", Z), ("ann", X), ("bob", Y))]


def test_the_figure_has_a_line_for_each_group() -> None:
    figure = disagreement_figure(two_games())
    assert figure is not None
    lines = {t["name"]: (t["x"], t["y"]) for t in figure["data"]}
    assert lines == {"settled": ([2, 3, 4], [0.5, 0, 0]), "not settled": ([2, 3, 4], [1, 1, 0.5])}
    assert disagreement_figure([]) is None
    assert disagreement_figure([finding(("ann", X))]) is None
    farther = finding(("ann", X), ("bob", Z), ("ann", Z), ("bob", Z))
    banded = disagreement_figure([*(two_games()[:1] * 3), farther, farther])
    assert banded is not None
    band = banded["data"][0]
    assert (band["name"], band["y"]) == ("settled, middle half", [1, 0, 0, 0, 0, 0.5])


def test_turns_that_few_games_reach_are_not_drawn() -> None:
    long = finding(*[("ann", X), ("bob", Z)] * 6)
    figure = disagreement_figure([*two_games()[1:] * 2, long])
    assert figure is not None
    assert figure["data"][0]["x"] == [2, 3, 4]


def test_the_page(tmp_path: Path) -> None:
    section = negotiation_section(two_games())
    assert section.text.startswith("1 of 2 games with enough offers")
    assert [row[:3] for row in outcome_table(two_games()).rows] == [
        ("settled", 1, "50.0%"),
        ("not settled", 1, "50.0%"),
        ("too few offers", 0, "0.0%"),
    ]
    assert [row[1] for row in outcome_table([]).rows] == [0, 0, 0]
    (figure,) = write_study(tmp_path, Study("Negotiations", sections=[section]))
    assert figure.name == "disagreement.html"
    assert "Do the parties settle?" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_analyze_and_report_tell_of_negotiations(tmp_path: Path) -> None:
    game, plain = talk(("ann", X), ("bob", X), ("ann", X), ("bob", "<b>No.")), talk(("ann", "Hello."), ("bob", "Hi."))
    game.id, plain.id = "game", "plain"
    write_jsonl([game, plain], tmp_path / "games.jsonl")
    results = analyze_source(str(tmp_path / "games.jsonl"))
    games = negotiations_of(results.findings())
    assert [(g.conversation_id, g.evidence["status"]) for g in games] == [
        ("game", "settled"),
        ("plain", "too few offers"),
    ]
    assert outcome_table(games).rows[0][:2] == ("settled", 1)
    page = render_report(report_data(results))
    assert page.count("Do the parties settle?") >= 2  # in the list of sections, and over the section
    assert page.count("disagreement at the end") == 1
    write_jsonl([plain], tmp_path / "plain.jsonl")
    assert negotiations_of(analyze_source(str(tmp_path / "plain.jsonl")).findings()) == []


def test_the_counts_of_the_page_on_positions(shared: Path) -> None:
    transcripts, problems = read_jsonl(shared / "llm_deliberation" / "llm_deliberation.jsonl")
    assert problems == []
    found = [negotiation(t) for t in transcripts]
    assert Counter(g.status for g in found) == {"not settled": 532, "too few offers": 76, "settled": 37}
    made = [o for t in transcripts for o in offers(t)]
    assert (len(transcripts), sum(len(t.messages) for t in transcripts)) == (645, 15371)
    assert (len(made), sum(len(g.made) for g in found), sum(g.partial for g in found)) == (12296, 12118, 178)
    games = [f for t in transcripts for f in NegotiationAnalyzer().findings(t)]
    assert [g.evidence["status"] for g in games] == [g.status for g in found]
    figure = disagreement_figure(games)
    assert figure is not None
    lines = {t["name"]: dict(zip(t["x"], (round(100 * y) for y in t["y"]), strict=True)) for t in figure["data"][2:]}
    told = {name: [line[turn] for turn in (2, 8, 24)] for name, line in lines.items()}
    assert told == {"settled": [57, 45, 17], "not settled": [61, 44, 35]}
    page = (Path(__file__).parents[1] / "docs" / "method" / "negotiations.md").read_text(encoding="utf-8")
    rows = [list(row) for row in outcome_table(games).rows]
    for length in (2, 3, 4, 5, 6):
        judged = [negotiation(t, length) for t in transcripts]
        count = Counter(g.status for g in judged)
        rows.append([length, count["settled"], count["too few offers"], sum(g.left for g in judged)])
    assert [row for row in rows if f"| {' | '.join(map(str, row))} |" not in page] == []


def test_findings_of_negotiations() -> None:
    game = talk(("ann", X), ("bob", Y), ("ann", Y), ("bob", Y))
    (found,) = NegotiationAnalyzer().findings(game)
    expected = negotiation(game).to_dict()
    assert (found.conversation_id, found.through_seq) == (game.id, 4)
    assert (found.kind, found.status) == ("negotiation", "settled")
    assert {"id": game.id, **found.evidence} == expected
    assert (found.score, found.threshold, found.speakers) == (3, 3, ("ann", "bob"))
    assert found.reason == "the last 3 offers are one deal of 2 parties"
    assert list(map(from_row, to_arrow([found]).to_pylist())) == [found]
    (few,) = NegotiationAnalyzer().findings(talk(("ann", X), ("bob", Y)))
    assert (few.status, few.reason) == ("too few offers", "2 complete offers of 2 parties; expected 3 of 2")
    (apart,) = NegotiationAnalyzer(4).findings(game)
    assert (apart.status, apart.settings) == ("not settled", {"in_a_row": 4, "parties": 2, "key": "deal"})
    assert apart.reason == "the last 3 offers are one deal of 2 parties; expected 4 of 2"
    (none,) = NegotiationAnalyzer(key="offer").findings(game)
    assert (none.kind, none.status, none.reason) == ("", "none", "no turn has an offer under 'offer'")
    assert negotiations_of([none]) == []
    assert negotiations_of([none, found]) == [none, found]
    assert [row[1] for row in outcome_table([none, found]).rows] == [1, 0, 1]
    with pytest.raises(ConfigurationError, match="in_a_row: 2, parties: 3; expected"):
        NegotiationAnalyzer(2, 3)
