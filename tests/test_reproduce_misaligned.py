"""`a2a-ray reproduce misaligned`: the command, and what each experiment claims."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import Message
from a2a_ray.reproduce.misaligned import (
    adversary,
    defences,
    error_by_round,
    noisy_agents,
    plateau_by_angle,
    prompt_geometry,
    turn_order,
    uninformed_helper,
)
from a2a_ray.reproduce.misaligned.attackers import (
    Estimates,
    ReadsDirection,
    ShowsObjective,
    SpansUpdates,
    projecting,
    white_box,
)
from a2a_ray.reproduce.misaligned.defended_agent import Bounded, Guard, Probing, Redrawn, guarded_conversation
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    Side,
    apply,
    gaps,
    norms,
    pair_agents,
    population,
    predicted,
    settle,
    sides,
)
from a2a_ray.reproduce.misaligned.misaligned_study import EXPERIMENTS, SUMMARY
from a2a_ray.reproduce.misaligned.study_settings import Settings
from tests.command_line import Done, call, finish, start
from tests.test_report import CHROMIUM, probe

SMALL = Settings(dim=3, pairs=4, seed=3, condition=4.0)
seeds = st.integers(0, 1000)
dims = st.integers(2, 6)


def pair(seed: int, d: int, count: int = 3) -> tuple[Side, Side]:
    return sides(population(Settings(dim=d, pairs=count, seed=seed, condition=5.0)))


class Study:
    """One small run of everything by the real command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        arguments = ("reproduce", "misaligned", "--dim", "2", "--pairs", "6", "--condition", "4", "--json", "-o", "out")
        self.done: Done = finish(start(*arguments, cwd=folder))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"))


@pytest.mark.slow
def test_the_last_line_has_the_documented_keys(study: Study) -> None:
    status, out, err = study.done
    assert status == 0, err
    result = study.done.json
    assert list(result)[-7:] == [*SUMMARY, "figures"]
    assert 0 <= result["max_relative_error_analytic"] <= 1e-10
    assert 0 <= result["median_relative_error_trained"] <= 0.01
    assert result["monotone_in_angle"] is True
    assert 0 <= result["adversary_error"] <= 1e-10
    assert result["victim_error"] > 0.3
    assert result["helper_rounds"] == 1
    assert len(result["figures"]) == len(set(result["figures"])) >= len(EXPERIMENTS)
    assert all((study.folder / figure).is_file() for figure in result["figures"])
    assert set(result["outcomes"]) == set(EXPERIMENTS)
    assert out.count("\n") == 1
    assert [f"{i} of {len(EXPERIMENTS)}: {topic}" for i, (topic, _) in enumerate(EXPERIMENTS.values(), 1)] == [
        line.rsplit(",", 1)[0] for line in err.splitlines()
    ]


@pytest.mark.slow
def test_results_json_has_all_of_it(study: Study) -> None:
    kept = json.loads((study.folder / "out" / "results.json").read_text())
    printed = study.done.json
    assert {key: kept[key] for key in (*SUMMARY, "figures", "settings")} == {
        key: printed[key] for key in (*SUMMARY, "figures", "settings")
    }
    assert list(kept["experiments"]) == list(EXPERIMENTS)
    assert len(kept["experiments"]["plateau"]["root_mean_square"]["analytic"][0]) == 19


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_draws_every_figure(study: Study) -> None:
    seen, console = probe(study.folder / "out" / "report.html")
    assert console == []
    assert seen["plots"] == len(study.done.json["figures"])


def test_one_experiment_without_trained_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    arguments = ("reproduce", "misaligned", "--dim", "3", "--pairs", "2", "--only", "plateau", "-o", str(out))
    done = call(capsys, *arguments, "--json")
    assert done.status == 0
    assert "No trained weights exist for 3 dimensions" in done.err
    assert done.json["median_relative_error_trained"] is None
    assert done.json["helper_rounds"] is None
    assert done.json["max_relative_error_analytic"] <= 1e-10
    again = call(capsys, *arguments)
    assert again.out.startswith("* Analytic agents end within")
    assert again.out.endswith(f"Report: {out / 'report.html'}\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--dim", "1"), "--dim: 1; expected a whole number from 2"),
        (("--dim", "51"), "to 50"),
        (("--pairs", "0"), "--pairs: 0; expected a whole number of at least 1"),
        (("--seed", "-1"), "--seed: -1"),
        (("--rounds", "1"), "--rounds: 1; expected 2 to 10,000"),
        (("--condition", "0.5"), "--condition: 0.5; expected a number of at least 1"),
        (("--condition", "nan"), "--condition: nan"),
        (("--step-size", "2"), "--step-size: 2; expected above 0 and below 2"),
        (("--step-size", "0.001"), "needs 299,"),
        (("--only", "advesary"), "Did you mean 'adversary'?"),
        (("--pairs", "many"), "'--pairs': expected a whole number"),
        (("-o", "file"), "file: "),
    ],
)
def test_invalid_values_are_reported_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    status, out, err = call(capsys, "reproduce", "misaligned", *arguments)
    assert (status, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_an_interrupted_study_keeps_what_was_finished(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process has it ignored
    process = start("reproduce", "misaligned", "--dim", "2", "--pairs", "4", cwd=tmp_path)
    signal.signal(signal.SIGINT, before)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("1 of 8")
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "Interrupted in the experiment" in err
    assert "misaligned/report.html" in err
    assert "Traceback" not in err
    kept = json.loads((tmp_path / "misaligned" / "results.json").read_text())
    assert "plateau" in kept["experiments"]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "reproduce", "misaligned", "--help")
    assert status == 0
    for expected in ("--only adversary --json", "results.json", "--step-size", "2511.08710"):
        assert expected in out


@given(seeds, dims, st.floats(0, 180), st.floats(-90, 90))
@settings(max_examples=20)
def test_residuals_are_linear_in_the_gap(seed: int, d: int, angle: float, turned: float) -> None:
    w, u = pair(seed, d, 2)
    whole = predicted(*plateau_by_angle.at_angle(w, u, angle, turned))
    parts = plateau_by_angle.predicted_residuals(w, u, np.array([[(turned, turned + angle)]]))[0, 0]
    np.testing.assert_allclose(parts, [whole.residual_w, whole.residual_u], atol=1e-12)


@given(seeds, st.integers(1, 4), dims)
def test_a_pair_and_its_twin_never_fall_together(seed: int, count: int, d: int) -> None:
    w, u = pair(seed, d, count)
    assert not plateau_by_angle.decreases(
        plateau_by_angle.rms_distance(plateau_by_angle.predicted_residuals(w, u))
    ).any()


def test_a_curve_that_falls_is_seen() -> None:
    curve = np.array([0.0, 1.0, 2.0, 2.0 - 1e-8, 3.0])
    assert plateau_by_angle.decreases(np.stack([curve, np.sort(curve)], axis=1)).tolist() == [True, False]


def test_plateau(tmp_path: Path) -> None:
    chosen = Settings(dim=5, pairs=8, condition=10.0)
    found = plateau_by_angle.run(chosen)
    assert found.summary["max_relative_error_analytic"] <= 1e-11
    assert found.summary["median_relative_error_trained"] <= 0.01
    assert found.summary["monotone_in_angle"]
    assert max(found.values["conversations_apart"].values()) <= 1e-9
    assert found.values["not_monotone"]["isotropic"] == {"W": 0.0, "U": 0.0}
    assert 0.1 < found.values["not_monotone"]["anisotropic"]["W"] < 0.9
    assert [p.name for p in found.section.panels] == ["plateau-w", "plateau-u", "counterexample"]


def test_too_few_rounds_are_reported() -> None:
    hasty = Settings(dim=3, pairs=2, rounds=5)
    assert plateau_by_angle.run(hasty).outcome.startswith("The conversations have not converged (up to 0.")
    assert "more than 5 rounds" in defences.run(hasty).outcome


def test_an_error_of_the_agents_would_be_seen() -> None:
    w, u = pair(0, 3)
    expected = plateau_by_angle.predicted_residuals(w, u)
    wrong = plateau_by_angle.predicted_residuals(w, replace(u, step_size=1.01 * u.step_size))
    assert plateau_by_angle.relative_errors(wrong, expected).max() > 1e-3
    assert plateau_by_angle.relative_errors(expected, expected).max() == 0


def test_error_per_round() -> None:
    found = error_by_round.run(SMALL)
    assert found.values["largest_difference"] <= 1e-12
    for pace in found.values["half_life"].values():
        assert pace["measured"] == pytest.approx(pace["predicted"], rel=0.02)


def test_order_of_turns() -> None:
    found = turn_order.run(SMALL).values["orders"]
    for name, row in found.items():
        if row["spread"] is None:
            assert row["error"] <= 1e-9, name
        else:
            assert row["standard_errors"] <= 5, name
            np.testing.assert_allclose(row["spread"], row["predicted_spread"], rtol=0.1)
    assert found["W takes 5 steps a turn"]["measured"][0] < found["W, then U"]["measured"][0]
    np.testing.assert_allclose(found["U, then W"]["measured"], found["W, then U"]["measured"], atol=1e-9)


def test_geometry() -> None:
    found = prompt_geometry.run(SMALL).values
    assert max(cell["largest_error"] for row in found["cells"].values() for cell in row) <= 1e-9
    disjoint = np.array([cell["measured"] for cell in found["cells"]["disjoint support"]])
    np.testing.assert_allclose(disjoint, disjoint[[0] * 5], atol=1e-9)
    own = [cell["measured"][0] for cell in found["cells"]["own eigenvectors"]]
    assert own[0] == pytest.approx(found["cells"]["shared eigenvectors"][0]["measured"][0], abs=1e-9)
    ends = found["common_null_space"]
    assert max(row["error"] for row in ends) <= 1e-9
    assert ends[0]["measured"] > ends[2]["measured"] + 0.3 < ends[4]["measured"]


ATTACKS = {
    "white box": lambda w, wanted: white_box(w, wanted).turn,
    "rank two": lambda w, wanted: white_box(w, wanted, rank=2).turn,
    "shows": lambda w, wanted: ShowsObjective(wanted, w.step_size),
    "spans": lambda w, wanted: SpansUpdates(wanted, w.step_size),
    "estimates": lambda w, wanted: Estimates(wanted, w.step_size),
}


@pytest.mark.parametrize("attack", ATTACKS)
@given(seeds, dims)
@settings(max_examples=8)
def test_an_attack_gets_everything(attack: str, seed: int, d: int) -> None:
    w, u = pair(seed, d)
    after_w, after_u = settle(w.turn, ATTACKS[attack](w, u.objectives), np.zeros((3, d)), 320)
    assert norms(after_u - u.objectives).max() <= 1e-10
    missed = apply(w.contractions, u.objectives - w.objectives)
    np.testing.assert_allclose(after_w - w.objectives, missed, atol=1e-10)


def test_the_span_of_updates_is_one_direction_in_the_end() -> None:
    w, u = pair(2, 5)
    attack = SpansUpdates(u.objectives, w.step_size)
    settle(w.turn, attack, np.zeros((3, 5)), 7)
    assert np.linalg.matrix_rank(attack.prompt(attack.updates(5)).covariances).tolist() == [5] * 3
    settle(w.turn, attack, np.zeros((3, 5)), 320)
    assert np.linalg.matrix_rank(attack.prompt(attack.updates(5)).covariances).tolist() == [1] * 3


@given(seeds, st.integers(3, 6))
@settings(max_examples=8)
def test_reading_off_a_direction_does_not_get_there(seed: int, d: int) -> None:
    w, u = pair(seed, d)
    _, after_u = settle(w.turn, ReadsDirection(u.objectives, w.step_size), np.zeros((3, d)), 320)
    assert (norms(after_u - u.objectives) / gaps(w, u)).min() > 0.1


def test_prompts_of_different_length_have_their_covariance() -> None:
    directions = [np.eye(3)[:1], np.eye(3)[:2]]
    found = projecting(directions, np.ones((2, 3)), 0.5)
    np.testing.assert_allclose(0.5 * found.covariances, [np.diag([1, 0, 0]), np.diag([1, 1, 0])], atol=1e-14)
    np.testing.assert_allclose(found.turn(np.zeros((2, 3))), [[1, 0, 0], [1, 1, 0]], atol=1e-14)


@given(seeds, dims)
@settings(max_examples=8)
def test_many_turns_at_once_are_those_of_the_agents(seed: int, d: int) -> None:
    drawn = population(Settings(dim=d, pairs=3, seed=seed))
    state = np.random.default_rng(seed).normal(size=(3, d))
    for k, side in enumerate(sides(drawn)):
        answers = side.turn(state)
        for i in range(3):
            agent = pair_agents(drawn, i)[k]
            said = agent.step(Message("c", 1, "", state[i], seed=0)).content
            np.testing.assert_allclose(answers[i], np.asarray(said), atol=1e-13)


def test_adversary() -> None:
    found = adversary.run(SMALL)
    assert found.summary["adversary_error"] <= 1e-11
    assert found.summary["victim_error"] > 0.3
    for bound in found.values["bounds"]:
        assert bound["adversary_error"] == pytest.approx(bound["adversary_error_predicted"], abs=1e-9)
        assert bound["adversary_error"] > 0.001
    assert found.values["ranks"][-1]["rounds_to_arrive"] == 1


def test_an_agent_that_leaves_its_objective_has_not_reached_it() -> None:
    assert adversary.arrival(np.array([[1.0], [0.001], [1.0], [0.001], [0.001]])) == 4
    assert adversary.arrival(np.array([[0.001], [0.001]])) == 1
    assert adversary.arrival(np.array([[0.001], [1.0]])) is None


def test_a_guard_that_does_nothing_changes_nothing() -> None:
    w, u = pair(1, 4)
    said, accepted = guarded_conversation(Guard(w), u.turn, 60)
    settled = settle(w.turn, u.turn, np.zeros((3, 4)), 60)
    np.testing.assert_array_equal(said[-1], settled[0])
    np.testing.assert_array_equal(accepted[-1], settled[1])


def test_a_bounded_step_is_bounded_and_takes_the_share_of_the_way_that_it_allows() -> None:
    w, u = pair(1, 4)
    attack = white_box(w, u.objectives)
    needed = norms(apply(w.pulls, u.objectives - w.objectives))
    said, accepted = guarded_conversation(Bounded(w, 0.3 * needed), attack.turn, 400)
    assert (norms(accepted - said) <= 0.3 * needed * (1 + 1e-12)).all()
    gap = u.objectives - w.objectives
    np.testing.assert_allclose(accepted[-1] - u.objectives, -0.7 * gap, atol=1e-9)
    np.testing.assert_allclose(said[-1] - w.objectives, 0.3 * apply(w.contractions, gap), atol=1e-9)


def test_re_drawn_prompts_are_of_the_same_kind_and_never_the_same() -> None:
    w, _ = pair(1, 4)
    eigenvalues = np.linalg.eigvalsh(w.covariances[0])
    guard = Redrawn(w, eigenvalues, seed=5)
    off = np.random.default_rng(0).normal(size=(3, 4))
    steps = np.stack([guard.step(w.objectives + off) - w.objectives - off for _ in range(2)])
    assert np.abs(steps[0] - steps[1]).max() > 0.01
    sizes = norms(steps) / norms(off)
    assert (sizes <= w.step_size * eigenvalues[-1] * (1 + 1e-9)).all()
    assert (sizes >= w.step_size * eigenvalues[0] * (1 - 1e-9)).all()


def test_probing_tells_attackers_from_honest_partners() -> None:
    w, u = pair(1, 4, 8)
    for partner, alarms in ((u, False), (white_box(w, u.objectives), True)):
        guard = Probing(w)
        said, _ = guarded_conversation(guard, partner.turn, 400)
        assert guard.alone.tolist() == [alarms] * 8
        assert (norms(said[-1] - w.objectives) < 1e-6).tolist() == [alarms] * 8


def test_defences() -> None:
    found = defences.run(SMALL).values
    for name, expected in found["attacked_predicted"].items():
        for agent in "WU":
            assert found["attacked"][name][agent] == pytest.approx(expected[agent], abs=1e-5), name
    for name in (defences.NONE, defences.BOUNDED):
        for agent in "WU":
            assert found["honest"][name][agent] == pytest.approx(found["honest_predicted"][agent], abs=1e-5)
    for mean in found["redrawn_mean"].values():
        assert mean["measured"] == pytest.approx(mean["predicted"], abs=0.05)
    assert found["probe"]["attack_most"] <= 1e-12 < 0.2 <= found["probe"]["honest_least"]
    assert all(row["rounds_to_settle"] >= 1 for row in found["honest"].values())


def test_helper() -> None:
    found = uninformed_helper.run(SMALL)
    measured, expected = found.values["rounds_measured"], found.values["rounds_predicted"]
    assert measured == expected
    assert measured[uninformed_helper.EXACT] == [1] * 4
    assert measured[uninformed_helper.ESTIMATED] == [SMALL.dim + 2] * 4
    assert measured[uninformed_helper.NONE] == [None] * 4
    assert found.summary == {"helper_rounds": 1}


def test_a_helper_that_stays_away_is_not_counted() -> None:
    assert uninformed_helper.reached(np.array([1.0, 1e-12, 1.0, 1e-12])) == 4
    assert uninformed_helper.reached(np.array([1e-12, 1.0])) is None
    assert uninformed_helper.reached(np.array([np.nan, 0.0])) == 2


def test_noise() -> None:
    found = noisy_agents.run(SMALL).values
    for reading in found["spread"]:
        assert reading["measured"] == pytest.approx(reading["predicted"], rel=0.03)
        assert reading["standard_errors"] <= 5
    assert found["verdicts"]["true"] == {
        "same objective": {"reached": 4},
        "misaligned": {"biased": 4},
        "adversary": {"one_sided": 4},
    }
    assert min(found["verdicts"]["right"].values()) >= 3


def test_rounds_follow_from_the_rate() -> None:
    assert Settings(rounds=7).rounds_for(0.5) == 7
    assert 0.5 ** Settings().rounds_for(0.5, 1e-6) <= 1e-6
    assert Settings().rounds_for(0.0) == Settings().rounds_for(1.0) == 2
    with pytest.raises(ConfigurationError, match="give a step nearer to 1"):
        Settings(step_size=1.9999)


@pytest.mark.parametrize("chosen", [Settings(2, 1, condition=1.0, step_size=1.0), Settings(2, 1, rounds=2)])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_extreme_settings_are_fine(name: str, chosen: Settings) -> None:
    from a2a_ray.reproduce.misaligned.misaligned_study import run_study_experiment

    found: Any = run_study_experiment(name, chosen)
    assert found.outcome.endswith(".")
