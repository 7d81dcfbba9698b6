"""Equilibria as findings: any agents, any order of turns, vectors, numbers and offers; or why nothing is said."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.rounds import alternating, simultaneous
from a2a_ray.analysis.equilibria import trajectory_fit as inference
from a2a_ray.analysis.equilibria.equilibrium_analyzer import EquilibriumAnalyzer, Prediction
from a2a_ray.analysis.equilibria.own_turns import own_turns
from a2a_ray.analysis.equilibria.position_settings import PositionSettings
from a2a_ray.core.contracts import TurnProtocol
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding, from_row, to_arrow
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.protocols.adaptive import Adaptive
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous

DIM = 4


def gradient_agents(count: int, **settings: Any) -> list[LSAAgent]:
    return [
        LSAAgent(
            f"a{i}", {"angle": 50.0 * i}, dim=DIM, geometry={"condition": 3.0, "seed": i}, step_size=0.5, **settings
        )
        for i in range(count)
    ]


def held(agents: Sequence[LSAAgent], rounds: int = 60, protocol: TurnProtocol | None = None) -> Transcript:
    return Conversation(list(agents), protocol or Alternating(), opening=np.zeros(DIM), max_rounds=rounds).run()


def analyzer(agents: Sequence[LSAAgent], **options: Any) -> EquilibriumAnalyzer:
    return EquilibriumAnalyzer({agent.name: agent.objective for agent in agents}, **options)


def told(*said: tuple[str, str], names: tuple[str, ...] = ("ann", "bob"), deals: Sequence[Any] = ()) -> Transcript:
    transcript = Transcript("talk", names)
    for number, (name, text) in enumerate(said, 1):
        metadata = {"deal": deals[number - 1]} if deals else {}
        transcript.append(Message("talk", number, name, text, metadata=metadata))
    return transcript


def one(analyzer: EquilibriumAnalyzer, transcript: Transcript) -> Finding:
    """The only finding, which is the same after a way through JSON and Arrow."""
    (found,) = analyzer.findings(transcript)
    assert (found.conversation_id, found.analyzer, found.analyzer_version) == (transcript.id, "equilibrium", "1")
    assert found.through_seq == len(transcript)
    assert found.reason
    assert Finding.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert list(map(from_row, to_arrow([found]).to_pylist())) == [found]
    return found


@pytest.fixture
def no_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trajectories without noise need no simulation, which takes seconds."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a bootstrap of a trajectory without noise")

    monkeypatch.setattr(inference, "FixedPointTest", refuse)


# --- gradient agents


@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_agents_that_take_turns(count: int) -> None:
    agents = gradient_agents(count)
    found = one(analyzer(agents), held(agents))
    truth = alternating(agents_of(agents))
    assert found.status == ("reached" if count == 1 else "biased")
    assert found.kind == "equilibrium"
    assert found.evidence["compared"] == f"each agent's own turn in each round of {count} turn{'s' * (count > 1)}"
    for agent, expected, residual in zip(agents, truth.residual_norms, truth.residuals, strict=True):
        of = found.evidence["agents"][agent.name]
        assert of["distance"] == pytest.approx(expected, abs=1e-9)
        assert of["last_distance"] == pytest.approx(expected, abs=1e-9 if count > 1 else 1e-5)
        np.testing.assert_allclose(of["position"], agent.objective + residual, atol=1e-9)
        assert of["objective"] == agent.objective.tolist()
        assert (of["rounds"], of["rounds_needed"], len(of["errors"])) == (60, 0, 60)
        assert of["interval"][0] == pytest.approx([of["position"][0]] * 2, abs=1e-9)
    assert found.score == pytest.approx(np.abs(truth.residuals).max(), abs=1e-9)
    assert (found.evidence["settled_round"] is None) == (count == 1)  # alone it still approaches its objective


@pytest.mark.usefixtures("no_bootstrap")
@pytest.mark.parametrize(("combine", "every"), [("mean", 1), (None, 3)])
def test_simultaneous_turns(combine: Any, every: int) -> None:
    agents = gradient_agents(3)
    found = one(analyzer(agents, every=every), held(agents, 120, Simultaneous(combine)))
    truth = simultaneous(agents_of(agents), combine)
    assert found.status == "biased"
    distances = [of["distance"] for of in found.evidence["agents"].values()]
    assert distances == pytest.approx(truth.residual_norms.tolist(), abs=1e-9)
    if every > 1:
        assert "in every third round, in which it continues the same chain" in found.evidence["compared"]
        assert {of["rounds"] for of in found.evidence["agents"].values()} == {40}


@pytest.mark.usefixtures("no_bootstrap")
def test_an_agent_that_speaks_twice_in_a_round_is_read_after_its_last_turn() -> None:
    agents = gradient_agents(2)
    found = one(analyzer(agents), held(agents, 90, Alternating(order=["a0", "a1", "a1"])))
    truth = alternating(agents_of(agents), [0, 1, 1])
    assert found.evidence["compared"] == "each agent's last own turn in each round of 3 turns"
    ends = [of["distance"] for of in found.evidence["agents"].values()]
    assert ends == pytest.approx(truth.residual_norms.tolist(), abs=1e-9)
    assert [len(of["errors"]) for of in found.evidence["agents"].values()] == [60, 120]  # all own turns


@pytest.mark.usefixtures("no_bootstrap")
def test_turns_that_go_to_the_highest_bid() -> None:
    agents = gradient_agents(2)
    transcript = held(agents, 60, Adaptive("bid"))
    found = one(analyzer(agents), transcript)
    assert found.status == "biased"
    assert "own turn in each round of 2 turns" in found.evidence["compared"]
    assert transcript.agents == ("a0", "a1")
    three = gradient_agents(3)
    found = one(analyzer(three), held(three, 60, Adaptive("bid")))
    assert found.reason == "a1: it has no messages"  # between the two others it is never the farthest off
    assert [of["status"] for of in found.evidence["agents"].values()] == ["biased", "undetermined", "biased"]


def test_turns_in_no_order() -> None:
    agents = gradient_agents(2)
    order = np.random.default_rng(0).random(1000)

    def score(transcript: Transcript, name: str) -> float:
        return float((name == "a1") == (order[len(transcript.messages)] < 0.5))

    found = one(analyzer(agents), held(agents, 30, Adaptive("score", score)))
    assert found.status in ("biased", "undetermined", "not_settled")
    assert "the order of turns is not fixed" in found.evidence["compared"]
    assert found.evidence["settled_round"] is None
    assert sum(of["rounds"] for of in found.evidence["agents"].values()) == 60


@pytest.mark.parametrize(
    ("senders", "places", "period", "words"),
    [
        ("abababa", {"a": [0, 1, 2], "b": [0, 1, 2]}, 2, "own turn in each round of 2 turns"),
        ("abbabb", {"a": [0, 1], "b": [1, 3]}, 3, "last own turn in each round of 3 turns"),
        ("bbabababab", {"a": [0, 1, 2, 3], "b": [1, 2, 3, 4]}, 2, "from turn 2 on, where the order is fixed"),
        ("abbaab", {"a": [0, 1, 2], "b": [0, 1, 2]}, 0, "not fixed"),
        ("a", {"a": [0], "b": []}, 1, "each round of 1 turn"),
        ("", {"a": [], "b": []}, 0, ""),
    ],
)
def test_which_turns_are_compared(senders: str, places: dict[str, list[int]], period: int, words: str) -> None:
    found = own_turns(list(senders), ["a", "b"])
    assert words in found.compared
    if senders == "bbabababab":  # the last round is not whole
        places["a"] = places["a"][:4]
        places["b"] = [1, 2, 3, 4]
    assert (found.places, found.period) == (places, period)


def test_a_pair_has_a_gap_an_angle_a_kind_and_the_round_in_which_it_settled() -> None:
    agents = gradient_agents(2)
    transcript = held(agents)
    truth = dict(zip(["a0", "a1"], alternating(agents_of(agents)).residual_norms.tolist(), strict=True))
    pair = one(analyzer(agents, predict=truth), transcript).evidence
    assert pair["gap"] == pytest.approx(2 * math.sin(math.radians(25)))
    assert (pair["angle"], pair["kind"]) == (50.0, "pair")
    assert [of["predicted"] for of in pair["agents"].values()] == list(truth.values())
    said = np.array([m.content for m in transcript.messages]).reshape(60, 2, DIM)
    moved = np.linalg.norm(np.diff(said, axis=0), axis=2).max(axis=1)
    assert pair["settled_round"] == int(np.flatnonzero(moved > 1e-9)[-1]) + 2
    errors = np.linalg.norm(said - np.stack([a.objective for a in agents]), axis=2)
    np.testing.assert_allclose([of["errors"] for of in pair["agents"].values()], errors.T, rtol=1e-11)
    for predicted, kind in (
        (Prediction({"a0": 1.0, "a1": 1e-17}), "adversary"),
        (Prediction({"a0": 0.0, "a1": 1.0}, helped=True), "helper"),
        (None, "pair"),
    ):
        assert one(analyzer(agents, predict=lambda _, p=predicted: p), transcript).evidence["kind"] == kind
    assert "gap" not in one(analyzer(gradient_agents(3)), held(gradient_agents(3))).evidence


def test_too_few_rounds_are_said() -> None:
    agents = gradient_agents(2)
    found = one(analyzer(agents), held(agents, 3))
    assert found.status == "undetermined"
    assert "a0: positions: 3 rounds that move in 2 dimensions; expected at least" in found.reason
    found = one(analyzer(agents), held(agents[:1] + agents[1:], 1))
    assert found.status == "undetermined"
    empty = one(analyzer(agents), Transcript("none", ("a0", "a1"), np.zeros(DIM)))
    assert empty.reason == "a0: it has no messages; a1: it has no messages"
    assert empty.score is None


# --- settings


def test_the_margin_follows_from_the_objectives_and_is_in_the_settings() -> None:
    for objectives, margin in (
        ({"ann": 80, "bob": [20], "cid": 50}, 0.6),
        ({"ann": [3.0, 4.0]}, 0.05),
        ({"ann": [3.0, 4.0], "bob": [3.0, 4.0]}, 0.05),
        ({"ann": 0}, 0.01),
    ):
        assert EquilibriumAnalyzer(objectives).settings["margin"] == pytest.approx(margin)
    settings = EquilibriumAnalyzer({"ann": 80, "bob": [20]}, 2, "numbers").settings
    assert settings == {
        "objectives": {"ann": [80.0], "bob": [20.0]},
        "margin": 2.0,
        "positions": {"from": "numbers", "dim": 1},
        "every": 1,
    }
    again = EquilibriumAnalyzer(**settings)
    assert again.settings == settings
    assert EquilibriumAnalyzer().settings["margin"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objectives": [1]}, "objectives: list; expected a mapping"),
        ({"objectives": {"ann": "high"}}, "objectives.ann: high; expected numbers"),
        ({"objectives": {"ann": [[1], [1, 2]]}}, "objectives.ann: "),
        ({"objectives": {"ann": 1, "bob": [1, 2]}}, "objectives: lengths ann: 1, bob: 2; expected one length"),
        ({"objectives": {"ann": 1}, "margin": 0}, "margin: 0; expected a number above 0"),
        ({"positions": 3}, "positions: '3'; expected a mapping such as {from: numbers}"),
        ({"positions": {"dim": 2}}, "positions.from: unknown source None"),
        ({"positions": "nubmers"}, "positions.from: unknown source 'nubmers'. Did you mean 'numbers'"),
        ({"positions": {"from": "numbers", "wich": "last"}}, "positions.wich: unknown key 'wich'"),
        ({"positions": {"from": "numbers", "which": "middle"}}, "positions.which: 'middle'"),
        ({"positions": {"from": "numbers", "missing": "zero"}}, "positions.missing: unknown choice 'zero'"),
        ({"positions": {"from": "numbers", "pattern": "("}}, r"positions.pattern: '\('; not a regular expression"),
        ({"positions": {"from": "numbers", "dim": 0}}, "positions.dim: 0; expected at least 1"),
        ({"positions": {"from": "vectors", "dim": 2}}, "positions.dim: vectors are positions themselves"),
        (
            {"objectives": {"ann": 1}, "positions": {"from": "numbers", "dim": 2}},
            "positions: 2 numbers each; expected 1",
        ),
        (
            {"objectives": {"ann": 1}, "positions": {"from": "offers", "choices": {"A": [1, 2]}}},
            "positions: 2 numbers each; expected 1",
        ),
        ({"every": 0}, "every: 0; expected a whole number"),
    ],
)
def test_settings_that_are_wrong(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        EquilibriumAnalyzer(**options)


def test_position_settings_survive_json() -> None:
    given = {
        "from": "offers",
        "encoding": "ordinal",
        "choices": {"price": [1, 2], "when": ["now", "later"]},
        "key": "d",
    }
    settings = PositionSettings.parse(json.loads(json.dumps(PositionSettings.parse(given).to_dict())))
    assert settings.to_dict() == given
    assert settings.dim == 2


# --- words


def hagglers(rounds: int = 40) -> Transcript:
    """Each moves half of the way from the last price to the one it wants, 80 and 20."""
    price, said = 50.0, []
    for _ in range(rounds):
        for name, wish in (("ann", 80.0), ("bob", 20.0)):
            price += (wish - price) / 2
            said.append((name, f"For the 2 of them, my offer is ${price:.9f}."))
    return told(*said)


@pytest.mark.usefixtures("no_bootstrap")
def test_numbers_in_answers() -> None:
    found = one(EquilibriumAnalyzer({"ann": 80, "bob": [20]}, 2), hagglers())
    assert (found.status, found.threshold) == ("biased", 2.0)
    assert {name: of["position"] for name, of in found.evidence["agents"].items()} == {
        "ann": [pytest.approx(60, abs=1e-6)],
        "bob": [pytest.approx(40, abs=1e-6)],
    }
    assert found.score == pytest.approx(20)
    assert (found.evidence["gap"], found.evidence["angle"]) == (60, 0)
    wide = EquilibriumAnalyzer({"ann": 60.5, "bob": 20}, 1, {"from": "numbers", "which": "last"})
    found = one(wide, hagglers())
    assert (found.status, found.speakers) == ("one_sided", ("ann",))
    assert found.reason.startswith("ann won")
    first = EquilibriumAnalyzer({"ann": 2, "bob": 2}, 1, {"from": "numbers", "which": "first"})
    assert one(first, hagglers()).status == "reached"


def test_a_single_noisy_agent_has_an_interval_and_a_p_value() -> None:
    noise = np.random.default_rng(0).normal(size=60)
    transcript = told(*(("ann", f"{50 + x:.6f}") for x in noise), names=("ann",))
    found = one(EquilibriumAnalyzer({"ann": 52}, 0.5), transcript)
    assert found.status == "biased"
    assert found.interval is not None
    assert found.interval[0] < 50 < found.interval[1] < 52
    assert found.p_value is not None
    assert found.p_value < 0.05


def test_offers_are_positions_too() -> None:
    choices = {"price": [10, 20, 30], "when": ["now", "later"]}
    deals = [{"price": 10, "when": "now"}, {"price": 20, "when": "later"}] * 6
    transcript = told(*[("ann", "So."), ("bob", "No.")] * 6, deals=deals)
    reading = {"from": "offers", "encoding": "ordinal", "choices": choices}
    found = one(EquilibriumAnalyzer({"ann": [0, 0], "bob": [2, 1]}, 0.1, reading), transcript)
    assert (found.status, found.speakers) == ("one_sided", ("ann",))
    assert found.evidence["agents"]["bob"]["position"] == [1, 1]
    none = one(EquilibriumAnalyzer({"ann": 0, "bob": 1}, 0.1, "offers"), told(("ann", "So."), ("bob", "No.")))
    assert none.status == "undetermined"
    assert "none of its 2 turns has an offer under 'deal'" in none.reason
    odd = one(EquilibriumAnalyzer({"ann": 0, "bob": 1}, 0.1, "offers"), transcript)
    assert odd.reason.startswith("ann: its positions have 4 numbers, its objective 1")


# --- why nothing can be said


def test_no_objectives() -> None:
    for settings in (None, {"cid": 3}):
        found = one(EquilibriumAnalyzer(settings), hagglers())
        assert (found.kind, found.status, found.threshold) == ("", "none", None)
        assert found.reason == "no objectives known for 'ann', 'bob'"
    assert "the conversation has no messages" in one(EquilibriumAnalyzer(), Transcript("empty", ())).reason


def test_one_objective_is_missing() -> None:
    found = one(EquilibriumAnalyzer({"ann": 60}, 1), hagglers())
    assert (found.status, found.reason) == ("undetermined", "bob: no objective known")
    assert found.evidence["agents"]["ann"]["status"] == "reached"
    assert found.evidence["agents"]["bob"]["objective"] is None
    assert "gap" not in found.evidence


def test_text_without_numbers() -> None:
    found = one(EquilibriumAnalyzer({"ann": 1, "bob": 2}), told(*[("ann", "Yes."), ("bob", "No.")] * 5))
    assert found.status == "undetermined"
    assert found.reason.startswith("ann: none of its 5 messages states a position; bob: none of its 5")
    assert found.evidence["agents"]["ann"]["errors"] == [None] * 5


def test_positions_missing_in_some_turns_are_named_by_message() -> None:
    transcript = hagglers(10)
    gaps = Transcript("gaps", ("ann", "bob"))
    for message in transcript.messages:
        gaps.append(Message("gaps", len(gaps) + 1, message.sender, "3", kind="bid"))
        text = "Hm." if message.turn in (3, 7) else message.content
        gaps.append(Message("gaps", len(gaps) + 1, message.sender, text))
    found = one(EquilibriumAnalyzer({"ann": 80, "bob": 20}), gaps)
    assert (found.status, found.reason) == ("undetermined", "ann: positions missing in turns 3, 7")
    assert found.evidence["agents"]["bob"]["status"] == "biased"


def test_what_becomes_of_gaps_can_be_chosen() -> None:
    said = [("ann", "So: 80."), ("bob", "20")] * 8
    said[6] = ("ann", "Hm.")
    for missing, rounds in (("standing", 8), ("stated", 7)):
        reading = {"from": "numbers", "missing": missing}
        found = one(EquilibriumAnalyzer({"ann": 80, "bob": 20}, positions=reading), told(*said))
        assert found.status == "reached"
        assert found.evidence["agents"]["ann"]["rounds"] == rounds
        assert found.settings["positions"] == {"from": "numbers", "dim": 1, "missing": missing}
        first = one(EquilibriumAnalyzer({"ann": 80, "bob": 20}, positions=reading), told(("ann", "Well."), *said[1:]))
        assert first.evidence["agents"]["ann"]["rounds"] == rounds - 1
        assert first.evidence["agents"]["ann"]["errors"][0] is None


def test_vectors_that_do_not_fit() -> None:
    agents = gradient_agents(2)
    found = one(EquilibriumAnalyzer({"a0": 1, "a1": 2}), held(agents, 10))
    assert found.reason.startswith("a0: its positions have 4 numbers, its objective 1")
    mixed = Transcript("mixed", ("a0", "a1"), np.zeros(2))
    mixed.append(Message("mixed", 1, "a0", np.zeros(2)))
    mixed.append(Message("mixed", 2, "a1", np.zeros(3)))
    assert one(analyzer(agents), mixed).reason == "vectors of 2 and 3 numbers; expected one length"
    given = EquilibriumAnalyzer({"ann": 1, "bob": 1}, positions="vectors")
    assert one(given, hagglers(2)).reason == "4 of 4 messages are text; expected vectors"


def test_actions_of_others_are_passed_over() -> None:
    foreign = Transcript("foreign", (), np.zeros(1))
    for turn in range(1, 31):
        speaker = "tool" if turn % 3 == 0 else "ann" if turn % 3 else "bob"
        kind, content = ("result", "99 found") if speaker == "tool" else ("message", np.ones(1))
        foreign.append(Message("foreign", turn, speaker, content, kind=kind))
    found = one(EquilibriumAnalyzer({"ann": 1}), foreign)
    assert (found.status, list(found.evidence["agents"])) == ("reached", ["ann"])
    assert found.evidence["agents"]["ann"]["rounds"] == 20


def test_numbers_that_are_too_large() -> None:
    huge = told(*[("ann", "1e150"), ("bob", "1")] * 6)
    found = one(EquilibriumAnalyzer({"ann": 1, "bob": 1}, 0.1), huge)
    assert found.reason.startswith("ann: positions: 1e+150 among them; expected numbers up to")
    growing = told(*((("ann", "bob")[i % 2], f"1e{4 * i}") for i in range(60)))
    assert one(EquilibriumAnalyzer({"ann": 1, "bob": 1}, 0.1), growing).status == "diverging"


def test_a_mistake_in_the_code_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: Any) -> Any:
        raise NameError("tpyo")

    monkeypatch.setattr("a2a_ray.analysis.equilibria.assessment._settled", mistaken)
    with pytest.raises(NameError, match="tpyo"):
        EquilibriumAnalyzer({"ann": 80, "bob": 20}).findings(hagglers())
