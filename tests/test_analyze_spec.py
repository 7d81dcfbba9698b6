"""`analyze:` in a specification, the analyzer that follows from a cell, and the pairs that reports draw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a2a_ray.analysis.dynamics.affine import agents_of
from a2a_ray.analysis.dynamics.asymmetry import adversary
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.registry import protocols
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.agent_spec import AgentSpec
from a2a_ray.experiment.closed_form import equilibrium_analyzer
from a2a_ray.experiment.spec import Experiment
from a2a_ray.report.agent_pairs import pairs_of
from a2a_ray.runtime.run_experiment import resume_run, run_experiment

DIM = 3
W = {"name": "w", "kind": "lsa", "dim": DIM, "step_size": 0.5, "objective": {"angle": 0.0}}
W["geometry"] = {"condition": 4.0, "seed": 1}
U = {**W, "name": "u", "objective": {"angle": 90.0}, "geometry": {"condition": 4.0, "seed": 2}}
V = {**W, "name": "v", "objective": {"angle": 200.0}, "geometry": {"condition": 4.0, "seed": 3}}
ECHOES = {"agents": [{"name": "ann", "kind": "echo"}, {"name": "bob", "kind": "echo"}], "openings": ["Hello."]}


def spec(*agents: dict[str, Any], **more: Any) -> Experiment:
    value = {"agents": list(agents), "openings": {"zeros": DIM}, "max_rounds": 80, **more}
    return Experiment.parse(value)


def found(cell: Experiment) -> tuple[Transcript, Finding]:
    """One conversation of a cell, held without Ray, and its finding, after a way through JSON."""
    protocol = protocols.build(cell.protocol, "protocol")
    agents = [agent.build() for agent in cell.agents]
    transcript = Conversation(agents, protocol, opening=cell.opening_contents[0], max_rounds=cell.max_rounds).run()
    (finding,) = equilibrium_analyzer(cell).findings(transcript)
    return transcript, Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False)))


# --- the analyzer of a cell


@pytest.mark.parametrize(
    "protocol",
    [
        {"kind": "alternating"},
        {"kind": "alternating", "order": ["w", "u", "v", "u"]},
        {"kind": "simultaneous", "combine": "mean"},
        {"kind": "simultaneous"},
    ],
)
def test_three_lsa_agents_settle_where_the_closed_form_puts_them(protocol: dict[str, Any]) -> None:
    _, finding = found(spec(W, U, V, protocol=protocol, max_rounds=200))
    assert finding.status == "biased"
    for of in finding.evidence["agents"].values():
        assert of["predicted"] > 0.1
        assert of["distance"] == pytest.approx(of["predicted"], abs=1e-8)


def test_where_there_is_no_closed_form_there_is_no_prediction() -> None:
    _, finding = found(spec(W, U, protocol={"kind": "adaptive"}))
    assert [of["predicted"] for of in finding.evidence["agents"].values()] == [None, None]
    assert finding.status == "biased"
    _, finding = found(spec(W, U, analyze={"objectives": {"u": [0.0, 0.0, 0.0]}}))
    assert [of["predicted"] for of in finding.evidence["agents"].values()] == [None, None]
    assert finding.evidence["agents"]["u"]["objective"] == [0, 0, 0]


def test_a_common_null_space_keeps_the_start() -> None:
    flat = {"dim": None, "geometry": None, "examples": [[1.0, 0.0, 0.0]]}
    plain = [{k: v for k, v in {**agent, **flat}.items() if v is not None} for agent in (W, U)]
    _, finding = found(spec(*plain, openings=[[5.0, 5.0, 5.0]]))
    for of in finding.evidence["agents"].values():
        assert of["distance"] == pytest.approx(of["predicted"], abs=1e-9)


def test_objectives_come_from_the_specification_for_other_agents() -> None:
    analyze = {"objectives": {"ann": 80, "bob": [20]}, "margin": 2, "positions": {"from": "numbers"}}
    analyzer = equilibrium_analyzer(Experiment.parse({**ECHOES, "analyze": analyze}))
    assert analyzer.settings == {
        "objectives": {"ann": [80.0], "bob": [20.0]},
        "margin": 2.0,
        "positions": {"from": "numbers", "dim": 1},
        "every": 1,
    }
    assert equilibrium_analyzer(Experiment.parse(ECHOES)).settings["objectives"] == {}


def test_no_agent_is_made_for_an_analyzer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("an agent was made")

    monkeypatch.setattr(AgentSpec, "build", refuse)
    model = {"kind": "hf", "model": "no/such-model"}
    pair = [{**agent, "kind": "regression", "model_agent": model} for agent in (W, U)]
    analyzer = equilibrium_analyzer(spec(*pair))
    assert set(analyzer.settings["objectives"]) == {"w", "u"}


def test_equal_cells_share_one_analyzer() -> None:
    first, second = (equilibrium_analyzer(spec(W, U, seed=seed)) for seed in (1, 2))
    assert first is second
    assert equilibrium_analyzer(spec(W, V)) is not first


# --- pairs, as reports draw them


def test_pairs_have_the_numbers_of_the_conversation() -> None:
    w, u = spec(W, U).agents[0].build(), spec(W, U).agents[1].build()
    attacker = {k: v for k, v in U.items() if k != "geometry"}
    attacker["examples"] = adversary(w.covariance, u.objective - w.objective, 0.5, 0.5).examples.tolist()
    helper = {"kind": "newton_helper", "helped": _prompt(W), "helper": _prompt(U)}
    cells = {"pair": spec(W, U), "adversary": spec(W, attacker, max_rounds=200), "helper": spec(W, U, protocol=helper)}
    for kind, cell in cells.items():
        transcript, finding = found(cell)
        (pair,) = pairs_of([finding], {transcript.id: kind})
        said = np.array([m.content for m in transcript.messages]).reshape(-1, 2, DIM)
        agents = [agent.build() for agent in cell.agents]
        errors = np.linalg.norm(said - np.stack([agent.objective for agent in agents]), axis=2)
        assert (pair.id, pair.label, pair.agent_names, pair.kind) == (transcript.id, kind, ("w", "u"), kind)
        assert (pair.angle, pair.gap) == (90.0, pytest.approx(math.sqrt(2)))
        assert pair.measured == tuple(errors[-1])
        np.testing.assert_allclose(pair.errors, errors, rtol=1e-11)
        predicted = (0.0, pair.gap) if kind == "helper" else tuple(alternating(agents_of(agents)).residual_norms)
        assert pair.predicted == pytest.approx(predicted, abs=1e-15)
        largest = pair.largest_error()
        assert largest is not None
        assert largest < 1e-9
        moved = np.linalg.norm(np.diff(said, axis=0), axis=2).max(axis=1)
        scale = max(pair.gap, 1.0)
        assert pair.settled_round == int(np.flatnonzero(moved > 1e-9 * scale)[-1]) + 2
        json.dumps(pair.to_dict(), allow_nan=False)


def test_what_is_no_pair() -> None:
    findings = [found(spec(W, U, V))[1], Finding(conversation_id="c", analyzer="loops")]
    silent = equilibrium_analyzer(spec(W, U)).findings(Transcript("s", ("w", "u"), np.zeros(DIM)))
    assert pairs_of([*findings, *silent], {}) == []
    (unpredicted,) = pairs_of([found(spec(W, U, protocol={"kind": "adaptive"}))[1]], {})
    assert math.isnan(unpredicted.predicted[0])
    assert unpredicted.label == unpredicted.id
    assert unpredicted.largest_error() is None


def _prompt(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in ("kind", "name")}


# --- the specification


@pytest.mark.parametrize(
    ("analyze", "words"),
    [
        ({"objective": {}}, "analyze.objective: unknown key 'objective'. Did you mean 'objectives'?"),
        ({"objectives": {"anna": 80}}, "analyze.objectives: unknown agent 'anna'. Did you mean 'ann'?"),
        ({"objectives": {"ann": 80, "bob": [1, 2]}}, "analyze.objectives: lengths ann: 1, bob: 2"),
        ({"objectives": {"ann": "high"}}, "analyze.objectives.ann: 'high'; expected a"),
        ({"margin": 0}, "analyze.margin: 0; expected more than 0"),
        ({"positions": {"from": "words"}}, "analyze.positions.from: unknown source 'words'"),
        ({"positions": {"from": "numbers", "whch": "last"}}, "analyze.positions.whch: unknown key 'whch'"),
        (3, "analyze: 3; expected"),
    ],
)
def test_a_specification_that_is_wrong(analyze: Any, words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Experiment.parse({**ECHOES, "analyze": analyze})
    assert words in str(error.value)


def test_objectives_that_do_not_go_with_those_of_other_agents() -> None:
    echo = {"name": "bob", "kind": "echo"}
    with pytest.raises(ConfigurationError, match=r"analyze.objectives: lengths w: 3, bob: 1; expected one length"):
        spec(W, echo, analyze={"objectives": {"bob": 1}}).check()


def test_a_cell_of_a_sweep_may_change_it() -> None:
    analyze = {"objectives": {"ann": 80, "bob": 20}}
    swept = Experiment.parse({**ECHOES, "analyze": {**analyze, "margin": 1}, "sweep": {"analyze.margin": [1, 2]}})
    assert [equilibrium_analyzer(cell).margin for cell in swept.cells] == [1, 2]
    listed = Experiment.parse({**ECHOES, "sweep": [{"label": "a", "analyze": analyze}, {"label": "b"}]})
    assert [equilibrium_analyzer(cell).settings["margin"] for cell in listed.cells] == [pytest.approx(0.6), None]
    assert [cell.analyze is None for cell in listed.cells] == [False, True]


def test_it_stays_in_the_manifest_and_resume_ignores_it(ray_cluster: None, tmp_path: Path) -> None:
    given = {**ECHOES, "max_rounds": 2, "analyze": {"objectives": {"ann": 80}, "margin": 2}}
    run = run_experiment(given, storage=tmp_path, progress=False, workers=1)
    assert run.experiment.analyze == Experiment.parse(given).analyze
    for analyze in (None, {"margin": 3}):
        assert resume_run(run, experiment={**given, "analyze": analyze}, progress=False).summary()["done"] == 1
    with pytest.raises(ConfigurationError, match="another specification"):
        resume_run(run, experiment={**given, "max_rounds": 3}, progress=False)
