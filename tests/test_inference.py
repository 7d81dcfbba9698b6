"""What `fit` tells from a trajectory: against the truth of simulated ones, and against plain formulas."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.agents.function import FunctionAgent
from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.analysis.equilibria import bootstrap
from a2a_ray.analysis.equilibria.bootstrap import FixedPointTest
from a2a_ray.analysis.equilibria.trajectory_fit import fit, positions_by_agent
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from tests.strategies import seeds, settling_rounds

Array = np.ndarray[Any, np.dtype[np.float64]]
Rounds = tuple[Array, Array, Array]


def trajectory(rounds: Rounds, total: int, noise: float = 0.0, seed: int = 0) -> Array:
    matrix, fixed_point, start = rounds
    rng = np.random.default_rng(seed)
    states = [start]
    for _ in range(total - 1):
        states.append(fixed_point + matrix @ (states[-1] - fixed_point) + noise * rng.normal(size=len(start)))
    return np.array(states)


def plane(rate: float, d: int = 1, noise: float = 0.1, total: int = 100, seed: int = 0) -> Array:
    """Noise about 1 on every axis, from 3 on."""
    return trajectory((rate * np.eye(d), np.ones(d), 3 * np.ones(d)), total, noise, seed)


# --- without noise


@given(settling_rounds(), st.integers(12, 60))
def test_a_noise_free_trajectory_gives_its_fixed_point_to_rounding(rounds: Rounds, total: int) -> None:
    found = fit(trajectory(rounds, total))
    assert found.kind in ("exact", "at rest")
    assert found.bounded
    widths = found.intervals[:, 1] - found.intervals[:, 0]
    assert (found.intervals[:, 0] <= rounds[1]).all()
    assert (rounds[1] <= found.intervals[:, 1]).all()
    assert widths.max() < 1e-2
    np.testing.assert_allclose(found.fixed_point, rounds[1], atol=1e-4)
    assert found.covers(rounds[1])
    assert found.p_value(rounds[1] + 1) == 0


def test_precision_without_noise() -> None:
    """What the property above cannot ask of ill-conditioned maps."""
    rounds = (np.array([[0.8, 0.1], [0.0, -0.5]]), np.array([2.0, -1.0]), np.array([5.0, 5.0]))
    for total in (6, 15, 40, 300):
        found = fit(trajectory(rounds, total))
        np.testing.assert_allclose(found.fixed_point, rounds[1], atol=1e-12)
        assert np.ptp(found.intervals, axis=1).max() < 1e-8
        assert found.rate == pytest.approx(0.8)
    single = fit(trajectory(rounds, 40).astype(np.float32))
    assert single.kind == "exact"
    assert fit(trajectory(rounds, 40).astype(np.float32) / np.float64(3)).kind == "exact"
    np.testing.assert_allclose(single.fixed_point, rounds[1], atol=1e-5)
    assert np.ptp(single.intervals, axis=1).max() < 1e-3


def test_a_resting_agent_settles_where_it_rests() -> None:
    found = fit(np.tile([0.1, 0.7], (6, 1)))
    assert (found.kind, found.period, found.rounds_needed) == ("at rest", 1, 0)
    assert found.fixed_point.tolist() == [0.1, 0.7]
    assert math.isnan(found.rate)
    printed = fit(np.round(trajectory((np.array([[0.6]]), np.ones(1) / 3, np.zeros(1)), 40), 2))
    assert printed.kind == "at rest"
    assert printed.fixed_point == pytest.approx([0.33])
    assert printed.rate == pytest.approx(0.6, abs=0.05)


def test_an_agent_that_left_its_place_before_is_not_at_rest() -> None:
    offers = [50.0, 60, 50, 55, 50, 50, 50, 50, 50]
    assert fit(offers).kind == "noisy"
    assert fit([70.0, 60, 55, *offers[-5:]]).kind == "at rest"


@pytest.mark.parametrize("period", [2, 3, 7])
def test_an_exact_cycle(period: int) -> None:
    cycle = np.random.default_rng(period).normal(size=(period, 2))
    found = fit(np.vstack([[[5.0, 5.0]], np.tile(cycle, (4, 1))]))
    assert (found.kind, found.period) == ("cycle", period)
    np.testing.assert_allclose(found.fixed_point, cycle.mean(axis=0))


def test_movement_in_a_plane_only() -> None:
    line = np.outer(plane(0.5)[:, 0], [1.0, 2.0, 0.0])
    line[:, 2] = 7.0
    found = fit(line)
    assert found.bounded
    assert found.intervals[2] == pytest.approx([7, 7])
    np.testing.assert_allclose(found.intervals[1], 2 * found.intervals[0], rtol=1e-6)
    middle = found.intervals.mean(axis=1)
    assert found.covers(middle)
    assert not found.covers(middle + 0.1 * np.eye(3)[2])
    assert not found.covers(middle + 0.1 * np.eye(3)[0])


def test_one_axis_without_noise_beside_one_with() -> None:
    states = np.column_stack([0.8 ** np.arange(60.0), plane(0.5, total=60)[:, 0]])
    found = fit(states)
    assert found.kind == "noisy"
    assert np.ptp(found.intervals[0]) < 1e-5
    assert found.intervals[0] == pytest.approx([0, 0], abs=1e-5)
    assert 0.02 < np.ptp(found.intervals[1]) < 0.5


def test_a_steady_drift_has_no_fixed_point() -> None:
    found = fit(np.arange(20.0))
    assert found.intervals.tolist() == [[-math.inf, math.inf]]
    assert np.isnan(found.fixed_point).all()
    assert found.rounds_needed == math.inf
    json.dumps(found.to_dict(), allow_nan=False)


# --- with noise


@pytest.mark.parametrize(("d", "rate", "total"), [(1, 0.6, 30), (2, 0.4, 60)])
def test_intervals_hold_the_truth_as_often_as_they_say(d: int, rate: float, total: int) -> None:
    held, joint = [], []
    for seed in range(150):
        found = fit(plane(rate, d, total=total, seed=seed), axes=[np.ones(d)], draws=199)
        low, high = found.intervals[0]
        held.append(low <= math.sqrt(d) <= high)
        joint.append(found.covers(np.ones(d)))
    assert 0.90 <= np.mean(held) <= 0.99
    assert 0.90 <= np.mean(joint) <= 0.99


def test_a_random_walk_has_unbounded_intervals() -> None:
    rng = np.random.default_rng(0)
    bounded = [fit(np.cumsum(rng.normal(size=50)), draws=199).bounded for _ in range(100)]
    assert np.mean(bounded) <= 0.12


def test_a_bias_of_four_standard_errors_is_found() -> None:
    true = 0.1 / (1 - 0.5) / math.sqrt(100)
    found = [fit(plane(0.5, seed=seed), draws=199).intervals[0] for seed in range(60)]
    assert np.mean([not low <= 1 + 4 * true <= high for low, high in found]) >= 0.8


def test_standard_error_spread_and_rate() -> None:
    found = fit(plane(0.5, d=2, total=4000), draws=99, axes=[[1.0, 1.0]])
    assert found.standard_error == pytest.approx([0.2 / math.sqrt(4000)], rel=0.1)
    assert found.spread == pytest.approx([0.1, 0.1], rel=0.05)
    assert found.rate == pytest.approx(0.5, abs=0.1)
    np.testing.assert_allclose(found.matrix, 0.5 * np.eye(2), atol=0.1)
    assert np.ptp(found.intervals) == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(4000), rel=0.4)


def test_fifteen_rounds_in_five_dimensions() -> None:
    found = fit(plane(0.2, d=5, total=15))
    assert found.intervals.shape == (5, 2)
    assert found.rounds_needed > 0
    fewer = fit(plane(0.2, d=5, total=9))
    assert not np.isfinite(fewer.intervals).any()
    assert fewer.rounds_needed == 3
    assert fewer.p_value(np.zeros(5)) == fewer.p_value(0.0, np.eye(5)[0]) == 1


def test_ends_of_an_interval_are_where_the_p_value_crosses() -> None:
    states = plane(0.7, d=3, total=60)
    found = fit(states, axes=[[1.0, -1.0, 0.5]])
    (low, high), axis, width = found.intervals[0], found.axes[0], np.ptp(found.intervals[0])
    for end, out in ((low, -1), (high, 1)):
        assert found.p_value(end + out * 0.1 * width, axis) < 0.05
        assert found.p_value(end - out * 0.1 * width, axis) > 0.05


def test_the_same_input_gives_the_same_answer() -> None:
    states = plane(0.5, d=2)
    first, second, other = fit(states), fit(states.tolist()), fit(states, seed=1)
    assert first.to_dict() == second.to_dict()
    assert first.intervals.tolist() != other.intervals.tolist()
    np.testing.assert_allclose(first.intervals, other.intervals, atol=0.3 * np.ptp(first.intervals))
    json.dumps(first.to_dict(), allow_nan=False)


@settings(max_examples=10)
@given(settling_rounds(dims=(1, 3)), seeds, st.floats(1e-3, 1e3), st.floats(-10, 10))
def test_units_and_origin_do_not_matter(rounds: Rounds, seed: int, unit: float, origin: float) -> None:
    states = trajectory(rounds, 40, 0.3, seed)
    here, there = fit(states, draws=99), fit(unit * (states + origin), draws=99)
    np.testing.assert_allclose(there.fixed_point, unit * (here.fixed_point + origin), rtol=1e-6, atol=1e-6 * unit)
    np.testing.assert_allclose(there.standard_error, unit * here.standard_error, rtol=1e-6)
    assert there.rate == pytest.approx(here.rate)


# --- the test behind it


def test_the_statistic_on_a_line_is_that_of_the_intercept() -> None:
    states = plane(0.5)
    design = np.column_stack([states[:-1] - 0.9, np.ones(99)])
    coefficients, squares, *_ = np.linalg.lstsq(design, np.diff(states[:, 0]), rcond=None)
    t = coefficients[1] / math.sqrt(squares[0] / 97 * np.linalg.inv(design.T @ design)[1, 1])
    test = FixedPointTest(states, 99, 0)
    assert test.restricted(test.point(np.array([0.9]))).statistic == pytest.approx(t**2 / 97, rel=1e-6)
    one = test.axis(np.ones(1), 0.9, 1.0, 0.0)
    assert test.restricted(one).statistic == pytest.approx(t**2 / 97, rel=1e-6)


@given(settling_rounds(dims=(2, 4)), seeds, st.floats(-3, 3))
def test_the_restricted_fit_obeys_its_hypothesis_and_no_other_is_likelier(
    rounds: Rounds, seed: int, value: float
) -> None:
    states = trajectory(rounds, 40, 0.3, seed)
    d, steps = states.shape[1], np.diff(states, axis=0)
    axis = np.eye(d)[0]
    test = FixedPointTest(states, 9, 0)
    fitted = test.restricted(test.axis(axis, value, 1.0, 0.0))
    rest = np.linalg.lstsq(fitted.slope, -fitted.intercept, rcond=None)[0]
    if np.abs(rest).max() < 1e3:
        assert rest[0] == pytest.approx(value, abs=1e-5)

    def log_likelihood(slope: Array, intercept: Array) -> float:
        left = steps - states[:-1] @ slope.T - intercept
        return float(-len(steps) / 2 * np.linalg.slogdet(left.T @ left)[1])

    design = np.column_stack([states[:-1], np.ones(len(steps))])
    free = np.linalg.lstsq(design, steps, rcond=None)[0]
    best = log_likelihood(fitted.slope, fitted.intercept)
    assert log_likelihood(free[:d].T, free[d]) - best == pytest.approx(
        len(steps) / 2 * math.log1p(fitted.statistic), abs=1e-4 * len(steps)
    )
    rng = np.random.default_rng(seed)
    for _ in range(20):  # others that obey it
        slope, point = fitted.slope + 0.02 * rng.normal(size=(d, d)), rest + 0.05 * rng.normal(size=d)
        point[0] = value
        assert log_likelihood(slope, -slope @ point) <= best + 1e-6


def test_simulated_trajectories_follow_the_restricted_fit_from_the_first_state(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Array] = []
    moments = bootstrap._moments
    monkeypatch.setattr(bootstrap, "_moments", lambda states: seen.append(states) or moments(states))
    states = plane(0.7, d=2, noise=0.5)
    test = FixedPointTest(states, 399, 0)
    hypothesis = test.point(np.array([1.1, 0.9]))
    test.p_value(hypothesis)
    fitted, simulated = test.restricted(hypothesis), seen[-1]
    assert simulated.shape == (399, 100, 2)
    np.testing.assert_array_equal(simulated[:, 0], np.tile(states[0], (399, 1)))
    noise = np.diff(simulated, axis=1) - simulated[:, :-1] @ fitted.slope.T - fitted.intercept
    np.testing.assert_allclose(noise.mean(axis=(0, 1)), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(noise.reshape(-1, 2).T), fitted.root @ fitted.root.T, atol=0.01)
    np.testing.assert_allclose(fitted.slope @ [1.1, 0.9] + fitted.intercept, 0, atol=1e-12)


def test_the_noise_of_many_rounds_is_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    states = plane(0.5, d=2)
    whole = fit(states).intervals
    monkeypatch.setattr("a2a_ray.analysis.equilibria.bootstrap.CHUNK", 10_000)
    np.testing.assert_allclose(fit(states).intervals, whole, rtol=1e-9)


# --- bad input


@pytest.mark.parametrize(
    ("positions", "options", "words"),
    [
        ([1.0, math.nan, 2.0, 3.0], {}, r"positions\[1\]: nan; expected finite"),
        (np.ones((2, 2, 2)), {}, r"positions: shape \(2, 2, 2\); expected \(T, d\)"),
        ([[1, 2], [3]], {}, "positions: .*; expected numbers"),
        ("text", {}, "positions: text; expected numbers"),
        ([], {}, r"positions: shape \(0,\)"),
        ([1.0, 3.0, 2.0], {}, "positions: 3 rounds that move in 1 dimensions; expected at least 4"),
        (np.random.default_rng(0).normal(size=(7, 5)), {}, "positions: 7 rounds .*; expected at least 8: 6 unknowns"),
        (np.arange(9.0), {"level": 0.5}, "level: 0.5; expected"),
        (np.arange(9.0), {"level": math.nan}, "level: nan; expected"),
        (np.arange(9.0), {"draws": 18}, "draws: 18; expected a whole number of at least 19"),
        (np.arange(9.0), {"seed": -1}, "seed: -1; expected"),
        (np.arange(9.0), {"axes": [[0.0]]}, "axes: row 0 is zero"),
        (np.arange(9.0), {"axes": [[1.0, 0.0]]}, r"axes: shape \(1, 2\); expected \(k, 1\)"),
    ],
)
def test_bad_input(positions: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fit(positions, **options)


def test_bad_points() -> None:
    found = fit(plane(0.5, d=2))
    with pytest.raises(ConfigurationError, match=r"point: shape \(3,\); expected \(2,\)"):
        found.p_value([1.0, 2.0, 3.0])
    with pytest.raises(ConfigurationError, match=r"point: shape \(2,\); expected \(\)"):
        found.p_value([1.0, 2.0], axis=[1.0, 0.0])


# --- from transcripts


def agents() -> list[LSAAgent]:
    return [
        LSAAgent("w", [1.0, 0.0], geometry={"condition": 5.0, "seed": 1}, step_size=0.5),
        LSAAgent("u", [0.0, 1.0], geometry={"condition": 3.0, "seed": 2}, step_size=0.7),
    ]


def test_real_agents_settle_where_the_closed_form_says() -> None:
    w, u = agents()
    transcript = Conversation([w, u], opening=np.zeros(2), max_turns=81).run()
    positions = positions_by_agent(transcript)
    assert [x.shape for x in positions.values()] == [(40, 2), (40, 2)]
    np.testing.assert_array_equal(positions["u"][3], transcript.messages[7].content)
    truth = alternating(agents_of([w, u]))
    found = fit(positions["w"])
    np.testing.assert_allclose(found.fixed_point, truth.states[0], atol=1e-12)
    assert found.rate == pytest.approx(truth.spectral_radius)
    np.testing.assert_allclose(fit(positions["u"]).fixed_point, truth.states[1], atol=1e-12)


def test_transcripts_that_have_no_positions() -> None:
    talk = Conversation([FunctionAgent("ann", str.upper), FunctionAgent("bob", str.lower)], opening="Hi", max_rounds=2)
    with pytest.raises(ConfigurationError, match="turn 1 is text"):
        positions_by_agent(talk.run())

    def said(*speakers: str, sizes: int = 2) -> Transcript:
        transcript = Transcript("t", ("ann", "bob"), np.zeros(2))
        for number, name in enumerate(speakers, 1):
            transcript.append(Message("t", number, name, np.zeros(2 if number < len(speakers) else sizes)))
        return transcript

    with pytest.raises(ConfigurationError, match="round 2 is bob, bob; expected each of ann, bob once"):
        positions_by_agent(said("ann", "bob", "bob", "bob"))
    with pytest.raises(ConfigurationError, match="1 messages of 2 agents; expected a complete round"):
        positions_by_agent(said("ann"))
    with pytest.raises(ConfigurationError, match="differing length"):
        positions_by_agent(said("ann", "bob", sizes=3))
    assert positions_by_agent(said("bob", "ann", "ann", "bob", "ann"))["ann"].shape == (2, 2)
