"""Equilibria: every status from trajectories that deserve it; wrong input raises, and so does a mistake in the code."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.asymmetry import adversary
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.analysis.equilibria import assessment
from a2a_ray.analysis.equilibria.assessment import AgentEquilibrium, EquilibriumFinding, assess_equilibrium
from a2a_ray.analysis.equilibria.trajectory_fit import fit, positions_by_agent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError

Array = np.ndarray[Any, np.dtype[np.float64]]


def swings(
    rate: float, settles: Any = 1.0, total: int = 100, noise: float = 0.1, seed: int = 0, start: float = 3
) -> Array:
    """Noise about `settles`, each round `rate` times as far as before."""
    rng = np.random.default_rng(seed)
    aim = np.atleast_1d(np.asarray(settles, dtype=np.float64))
    states = [aim + start]
    for _ in range(total - 1):
        states.append(aim + rate * (states[-1] - aim) + noise * rng.normal(size=len(aim)))
    return np.array(states)


def one(positions: Any, objective: Any = 1.0, margin: float = 0.1, **options: Any) -> AgentEquilibrium:
    """The assessment of a single agent, which is the group's too."""
    outcome = assess_equilibrium({"ann": positions}, {"ann": objective}, margin, **options)
    assert outcome.status == outcome.agents["ann"].status
    json.dumps(outcome.to_dict(), allow_nan=False)
    return outcome.agents["ann"]


# --- one agent


def test_reached_within_the_margin() -> None:
    found = one(swings(0.5))
    assert found.status == "reached"
    assert found.reason.startswith("it settles within 0.0")
    assert "margin 0.1 (95%, 100 rounds)" in found.reason
    assert found.error is not None
    assert abs(found.error[0]) < 0.1
    assert one(swings(0.5), margin=0.03).status == "undetermined"


def test_biased_where_an_interval_excludes_the_objective() -> None:
    found = one(swings(0.5, [1.0, 1.0]), [1.0, 1.2])
    assert found.status == "biased"
    assert found.reason.startswith("along axis 2 it settles between 0.9")
    assert "not at its objective 1.2 (95%, 100 rounds)" in found.reason


def test_a_bias_inside_the_margin_is_reached() -> None:
    assert one(swings(0.5, noise=1e-4), 1.05).status == "reached"
    assert one(swings(0.5, noise=1e-4), 1.05, margin=0.04).status == "biased"


def test_undetermined_says_how_many_rounds_may_tell() -> None:
    found = one(swings(0.5, noise=1.0), 1.1)
    assert found.status == "undetermined"
    assert found.rounds_needed > 100
    assert f"about {found.rounds_needed:.0f} more rounds may suffice" in found.reason


def test_not_settled_yet_says_how_many_rounds_it_expects() -> None:
    found = one(swings(0.98, total=40, start=0))
    assert found.status == "not_settled"
    assert found.fit is not None
    assert found.rounds_needed == found.fit.rounds_needed > 0
    assert "40 rounds do not show where it settles" in found.reason
    assert one(np.arange(20.0)).reason.endswith("the number of further rounds is unknown")


def test_a_slow_walk_is_not_settled_and_in_the_end_it_is() -> None:
    """More rounds of the same: the expectation is of the right order."""
    states = swings(0.9, total=1000, start=0, seed=3)
    first = one(states[:40])
    assert first.status == "not_settled"
    assert one(states[: 40 + 3 * int(first.rounds_needed)]).status != "not_settled"


@pytest.mark.parametrize("period", [2, 3, 5])
def test_oscillating_exactly_and_in_noise(period: int) -> None:
    cycle = np.tile(np.arange(period, dtype=float) ** 2, 60 // period + 6)
    exact = one(cycle)
    assert (exact.status, exact.period) == ("oscillating", period)
    assert exact.reason == f"it repeats every {period} rounds, exactly"
    noisy = one(cycle + 0.2 * np.random.default_rng(0).normal(size=len(cycle)))
    assert (noisy.status, noisy.period) == ("oscillating", period)
    assert noisy.reason.endswith("apart from noise")


@pytest.mark.parametrize("rate", [-0.7, -0.95])
def test_an_eigenvalue_near_minus_one_is_no_limit_cycle(rate: float) -> None:
    found = Counter(one(swings(rate, total=60, seed=seed), draws=99).status for seed in range(40))
    assert found["oscillating"] <= 2
    assert found["diverging"] <= 2


def test_a_fading_swing_settles() -> None:
    assert one(swings(-0.9, noise=0)).status == "reached"
    assert one(swings(-1.0, noise=0)).status == "oscillating"


def test_a_turn_that_never_fades_oscillates() -> None:
    angle = np.arange(50.0)
    found = one(np.column_stack([np.cos(angle), 1 + np.sin(angle)]), [0.0, 1.0])
    assert (found.status, found.period) == ("oscillating", 6)
    assert "every 6.28 rounds" in found.reason
    fading = 0.9 ** angle[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    assert one(fading, [0.0, 0.0]).status == "reached"


@pytest.mark.parametrize("noise", [0, 0.1])
@pytest.mark.parametrize("rate", [1.1, -1.1])
def test_diverging(rate: float, noise: float) -> None:
    found = one(swings(rate, noise=noise, start=0.1))
    assert found.status == "diverging"
    assert found.reason == "its steps grow by a factor of 1.1 a round"


def test_growth_beyond_all_numbers_diverges() -> None:
    assert one([10.0**k for k in range(0, 309, 4)] + [np.inf, -np.inf, np.nan]).status == "diverging"


def test_random_walks_seldom_diverge() -> None:
    found = [one(np.cumsum(np.random.default_rng(s).normal(size=40)), draws=99).status for s in range(60)]
    assert found.count("diverging") <= 3
    assert found.count("not_settled") >= 50


def test_one_of_many_axes_excludes_by_chance() -> None:
    states = swings(0.3, np.ones(4))
    intervals = fit(states).intervals
    middle, (low, high) = intervals.mean(axis=1), intervals[2]
    middle[2] = high + 0.02 * (high - low)
    found = one(states, middle, 0.01)
    assert found.status == "undetermined"
    assert "on one of 4 axes this can be chance; about" in found.reason
    assert found.reason.startswith("along axis 3")
    assert one(states, middle, 0.01, axes=[[0, 0, 1, 0]]).status == "biased"
    middle[2] = high + 0.5 * (high - low)
    assert one(states, middle, 0.01).status == "biased"


# --- groups


def test_one_sided_names_the_winner() -> None:
    outcome = assess_equilibrium({"ann": swings(0.5), "bob": swings(0.5, 2)}, {"ann": 1.0, "bob": 1.0}, 0.1)
    assert (outcome.status, outcome.winners) == ("one_sided", ("ann",))
    assert outcome.reason.startswith("ann won: ann: it settles within")
    assert "bob: along axis 1 it settles between 1.9" in outcome.reason


def test_one_excluded_objective_is_not_yet_one_sided() -> None:
    """The other's interval is too wide to say that it reached its own."""
    outcome = assess_equilibrium({"ann": swings(0.5, noise=1.0), "bob": swings(0.5, 2)}, {"ann": 1.0, "bob": 1.0}, 0.1)
    assert outcome.agents["bob"].status == "biased"
    assert (outcome.status, outcome.winners) == ("undetermined", ())


@pytest.mark.parametrize(
    ("rates", "status"),
    [
        ([0.5, 0.5], "reached"),
        ([0.5, "off"], "one_sided"),
        (["off", "off"], "biased"),
        ([0.5, "few"], "undetermined"),
        ([0.5, "drift"], "not_settled"),
        (["drift", "cycle"], "oscillating"),
        (["cycle", 1.1, "drift"], "diverging"),
    ],
)
def test_the_groups_status(rates: list[Any], status: str) -> None:
    special = {"off": swings(0.5, 3), "few": [1.0, 2.0], "drift": np.arange(30.0), "cycle": [1.0, 2.0] * 10}
    positions = {f"a{i}": special[r] if isinstance(r, str) else swings(r) for i, r in enumerate(rates)}
    assert assess_equilibrium(positions, dict.fromkeys(positions, 1.0), 0.1).status == status


def test_the_gap_is_one_axis_for_each_agent() -> None:
    positions = {"ann": swings(0.5, [1.0, 0.0]), "bob": swings(0.5, [1.0, 0.0])}
    objectives = {"ann": [1.0, 0.0], "bob": [1.0, 2.0]}
    outcome = assess_equilibrium(positions, objectives, 0.1, axes="gap")
    fits = {name: agent.fit for name, agent in outcome.agents.items()}
    assert [f.axes.tolist() for f in fits.values() if f] == [[[0, 1]], [[0, -1]]]
    assert (outcome.status, outcome.winners) == ("one_sided", ("ann",))
    coordinates = assess_equilibrium(positions, objectives, 0.1).agents["ann"].fit
    assert coordinates is not None
    assert len(coordinates.axes) == 2
    same = assess_equilibrium(positions, {name: [1.0, 0.0] for name in positions}, 0.1, axes="gap").agents["ann"].fit
    assert same is not None
    assert len(same.axes) == 2  # no gap, no direction


# --- real agents


def talk(w: LSAAgent, u: LSAAgent, rounds: int = 60) -> EquilibriumFinding:
    transcript = Conversation([w, u], opening=np.zeros(2), max_rounds=rounds).run()
    return assess_equilibrium(positions_by_agent(transcript), {"w": w.objective, "u": u.objective}, 0.01)


def test_real_pairs() -> None:
    def agent(name: str, objective: Any, seed: int) -> LSAAgent:
        return LSAAgent(name, objective, geometry={"condition": 4.0, "seed": seed}, step_size=0.6)

    w, u, other = agent("w", [1.0, 0.0], 1), agent("u", [1.0, 0.0], 2), agent("u", [0.0, 1.0], 2)
    assert talk(w, u).status == "reached"
    outcome = talk(w, other)
    assert outcome.status == "biased"
    assert "it settles at 0." in outcome.reason
    truth = alternating(agents_of([w, other]))
    error = outcome.agents["w"].error
    assert error is not None
    np.testing.assert_allclose(error, truth.residuals[0], atol=1e-10)
    examples = adversary(w.covariance, other.objective - w.objective, 0.6, 0.6).examples.tolist()
    attacker = LSAAgent("u", [0.0, 1.0], examples=examples, step_size=0.6)
    outcome = talk(w, attacker, rounds=200)
    assert (outcome.status, outcome.winners) == ("one_sided", ("u",))


# --- what is wrong: input, numerics, code


@pytest.mark.parametrize(
    ("positions", "objectives", "margin", "words"),
    [
        (5, {}, 0.1, "positions: int; expected a mapping"),
        ({}, {}, 0.1, "positions: no agents"),
        ({"ann": [1.0, 2.0]}, None, 0.1, "objectives: NoneType; expected a mapping"),
        ({"ann": np.ones(9)}, {"ann": 1.0}, 0.0, "margin: 0; expected a number above 0"),
        ({"ann": np.ones(9)}, {"ann": 1.0}, "wide", "margin: wide; expected numbers"),
        ({"ann": np.ones(9)}, {"ann": 1e200}, 0.1, r"objectives.ann: \[1e\+200\]; expected numbers up to 1e\+100"),
        ({"ann": np.ones(9)}, {"bob": 1.0}, 0.1, "objectives: none of 'ann'; there are 'bob'"),
        ({"ann": np.ones((9, 2))}, {"ann": 1.0}, 0.1, r"objectives.ann: shape \(1,\); expected \(2,\)"),
        ({"ann": [1.0, np.nan, 1, 1, 1]}, {"ann": 1.0}, 0.1, r"positions.ann\[1\]: nan"),
        ({"ann": [1.0, 2.0, 3.0, 4.0, np.inf, 5.0]}, {"ann": 1.0}, 0.1, r"positions.ann\[4\]: inf"),
        ({"ann": np.ones(9), "bob": ["a"] * 9}, {"ann": 1.0, "bob": 1.0}, 0.1, "positions.bob: "),
    ],
)
def test_bad_input_raises_and_names_the_key(positions: Any, objectives: Any, margin: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        assess_equilibrium(positions, objectives, margin)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": 1.0}, "level: 1.0; expected"),
        ({"axes": "far"}, "axes: 'far'; expected"),
        ({"draws": "many"}, "draws: 'many'; expected a whole number"),
        ({"seed": -1}, "seed: -1; expected a whole number"),
    ],
)
def test_bad_options_raise(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        assess_equilibrium({"ann": swings(0.5)}, {"ann": np.int64(1)}, 0.1, **options)


def test_too_few_rounds_are_undetermined_and_leave_the_others() -> None:
    found = assess_equilibrium({"ann": [1.0, 2.0], "bob": swings(0.5)}, {"ann": 1.0, "bob": 1.0}, 0.1)
    assert (found.status, found.agents["bob"].status) == ("undetermined", "reached")
    assert found.reason.startswith("ann: positions: 2 rounds that move in 1 dimensions; expected at least 4")


@pytest.mark.parametrize(
    "error", [np.linalg.LinAlgError("SVD did not converge"), OverflowError("x"), FloatingPointError("x")]
)
def test_a_failure_of_the_numerics_is_undetermined(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(assessment, "fit", fails)
    found = assess_equilibrium({"ann": swings(0.5)}, {"ann": 1.0}, 0.1)
    assert found.status == "undetermined"
    assert f"numerical failure: {type(error).__name__}: {error}" in found.reason


@pytest.mark.parametrize("error", [NameError, AttributeError, TypeError, KeyError, ValueError, ZeroDivisionError])
def test_a_mistake_in_the_code_is_no_result(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def mistaken(*_: Any, **__: Any) -> Any:
        raise error("tpyo")

    monkeypatch.setattr(assessment, "_settled", mistaken)
    with pytest.raises(error, match="tpyo"):
        assess_equilibrium({"ann": swings(0.5)}, {"ann": 1.0}, 0.1)


numbers = st.floats() | st.sampled_from([0.0, 1.0, 2.0, 1e-300, 1e300, 5e-324])
anything = (
    hnp.arrays(np.float64, st.tuples(st.integers(0, 20), st.integers(0, 3)), elements=numbers)
    | hnp.arrays(np.float64, st.integers(0, 20), elements=numbers)
    | st.lists(st.lists(numbers, max_size=2), max_size=6)
    | st.sampled_from([None, "text", 3, [None] * 9, np.array([["a"]]), [1 + 2j] * 8])
)


@given(anything, anything | numbers, numbers | st.none(), st.none() | st.just("gap") | anything)
def test_any_input_gives_a_finding_or_one_sentence(positions: Any, objective: Any, margin: Any, axes: Any) -> None:
    try:
        found = assess_equilibrium({"ann": positions}, {"ann": objective}, margin, axes=axes, draws=19)
    except ConfigurationError:  # what its sentences say is tested above
        return
    assert found.reason
    json.dumps(found.to_dict(), allow_nan=False)
