"""`a2a-ray demo`: both phenomena from one run on a local Ray, without an API key or a download."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from a2a_ray.analysis.analyze import AnalysisSettings
from a2a_ray.analysis.dynamics.asymmetry import adversary
from a2a_ray.analysis.loops import first_loop
from a2a_ray.analysis.text.embedding import DEFAULT_MODEL
from a2a_ray.experiment.spec import AgentSpec, Experiment
from a2a_ray.report.agent_pairs import Pair, pairs_of
from a2a_ray.report.analyze_source import analyze_opened
from a2a_ray.report.finding_text import finding_text
from a2a_ray.report.loop_tables import loop_table
from a2a_ray.report.page_parts import BigNumber
from a2a_ray.report.report_page import write_report
from a2a_ray.report.report_source import report_data
from a2a_ray.report.results import Results
from a2a_ray.report.terminal_table import print_table
from a2a_ray.runtime.progress import print_status
from a2a_ray.runtime.run_experiment import run_experiment

ANGLES = range(0, 181, 10)
DIM = 10
PUBLISHED, LOOPING = "published setting", "looping setting"
OPENINGS, FULL_OPENINGS = 12, 50


def run_demo(out: Path, full: bool) -> dict[str, Any]:
    """Run the demo, print its tables, and return the object that `a2a-ray demo --json` prints."""
    started = time.perf_counter()
    print_status("Running pairs of LSA agents at 19 angles, and conversations between two small language models...")
    run = run_experiment(demo_experiment(FULL_OPENINGS if full else OPENINGS), storage=out)
    print_status(f"{run.summary()['turns']:,} turns in {time.perf_counter() - started:.0f} s. Analyzing them...")
    results = analyze_opened(run, AnalysisSettings(DEFAULT_MODEL, detector_embeds=False))
    pairs = pairs_of(results.findings(), results.labels)
    plain_pairs = [p for p in pairs if p.kind == "pair"]
    headline = _headline(results, plain_pairs)
    report = out / "report.html"
    write_report(report, report_data(results, "a2a_ray demo", headline, _numbers(results, plain_pairs)))
    _print_tables(results, pairs, headline)
    seconds = time.perf_counter() - started
    print(f"Report: {report}\nRun:    {run.path}   ({seconds:.0f} s)")
    return {
        "misaligned": {"pairs": _angles(plain_pairs), "max_relative_error": _largest_error(plain_pairs)},
        "loops": {
            "conversations": len(results.texts),
            "looped": results.looped()[0],
            "published_setting_looped": results.looped(PUBLISHED)[0],
        },
        "turns": run.summary()["turns"],
        "run": run.path,
        "report": str(report),
        "seconds": round(seconds, 1),
    }


def demo_experiment(openings: int) -> Experiment:
    """Return the demo as one specification; every cell is another pair of agents."""
    geometry = {"examples": 40, "condition": 4.0}
    w = {"kind": "lsa", "dim": DIM, "step_size": 0.5, "objective": {"angle": 0.0}, "geometry": {**geometry, "seed": 1}}
    u = {**w, "geometry": {**geometry, "seed": 2}}
    start = {"openings": {"zeros": DIM}, "max_rounds": 80, "protocol": {"kind": "alternating"}}

    def pair(label: str, w: dict[str, Any], u: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"label": label, "agents": [{"name": "w", **w}, {"name": "u", **u}], **start, **more}

    def at(angle: float) -> dict[str, Any]:
        return {**u, "objective": {"angle": float(angle)}}

    cells = [pair(f"{angle} degrees", w, at(angle)) for angle in ANGLES]
    cells.append(pair("90 degrees, each in a Ray actor", *({**a, "placement": "actor"} for a in (w, at(90)))))
    attacker = {k: v for k, v in at(90).items() if k != "geometry"}
    attacker["examples"] = _attack(w, at(90))
    cells.append(pair("adversary at 90 degrees", w, attacker, max_rounds=400))  # rank one: slow to settle
    helper = {"kind": "newton_helper", "helped": _prompt(w), "helper": _prompt(at(90))}
    cells.append(pair("helper at 90 degrees", w, at(90), protocol=helper))

    models = [{"name": "lou", "kind": "hf", "model": "tiny-llama"}, {"name": "neo", "kind": "hf", "model": "tiny-neox"}]
    length = {"openings": {"first": openings}, "max_rounds": 25}
    published = [{**m, "max_new_tokens": 50, "temperature": 0.7, "top_p": 0.95} for m in models]
    looping = [{**m, "max_new_tokens": 50, "temperature": 0.0, "top_p": 0.95} for m in models]
    cells.append(
        {"label": PUBLISHED, "agents": published, "protocol": {"kind": "alternating", "context": "last"}, **length}
    )
    protocol = {"kind": "alternating", "context": {"characters": 400}}
    cells.append({"label": LOOPING, "agents": looping, "protocol": protocol, **length})
    return Experiment.parse(
        {"name": "demo", "agents": cells[0]["agents"], "openings": start["openings"], "sweep": cells}
    )


def _largest_error(pairs: list[Pair]) -> float:
    """Return the largest |measured - predicted| residual divided by the gap, for angles above 0."""
    return max(error for p in pairs if (error := p.largest_error()) is not None)


def _headline(results: Results, pairs: list[Pair]) -> list[str]:
    """Return sentences that state the result."""
    settled = sum(p.settled_round is not None for p in pairs)
    aligned = sorted({p.angle for p in pairs if max(p.measured) < 1e-9})
    where = f"at {', '.join(f'{a:g}' for a in aligned)} degrees" if aligned else "at no angle"
    few, total = results.looped(PUBLISHED)
    many, of = results.looped(LOOPING)
    sentences = [
        f"{settled} of {len(pairs)} pairs of LSA agents settled. Both agents reach their objectives only {where}; the"
        " other pairs settle in a biased equilibrium, which the closed form predicts with an error of at most"
        f" {_largest_error(pairs):.1g} of the gap between the objectives.",
        f"Two small language models looped in {few} of {total} conversations in the published setting (context: the"
        f" last output; temperature 0.7), and in {many} of {of} with a context of 400 characters and greedy decoding.",
    ]
    if few * 2 < total:
        sentences.append(
            "The published rate, 35 of 50, was measured with models of 12 and 13 billion parameters. The embedded"
            " models have two million parameters; they repeat each other less and rarely loop in that setting."
        )
    return sentences


def _angles(pairs: list[Pair]) -> int:
    return len({p.angle for p in pairs})


def _numbers(results: Results, pairs: list[Pair]) -> list[BigNumber]:
    return [
        BigNumber(str(_angles(pairs)), "angles between objectives"),
        BigNumber(f"{_largest_error(pairs):.1g}", "largest error of the closed form, relative to the gap"),
        *(
            BigNumber("{} of {}".format(*results.looped(label)), f"conversations looped in the {label}")
            for label in (PUBLISHED, LOOPING)
        ),
    ]


def _print_tables(results: Results, pairs: list[Pair], headline: list[str]) -> None:
    """Print the results of some pairs, the loops, and the headline."""
    printed = [p for p in pairs if p.kind != "pair" or p.angle % 45 == 0 or "actor" in p.label]
    rows = [(p.label, p.gap, p.measured[0], p.predicted[0], p.measured[1], p.predicted[1]) for p in printed]
    columns = ("pair", "gap", "w measured", "w predicted", "u measured", "u predicted")
    print_table("Biased equilibrium: distance of each agent from its own objective", columns, rows)
    loops = loop_table(results)
    if loops is not None:
        print_table("Convergence into loops, 25 rounds", loops.columns, loops.rows)
    example = next(iter(results.loops), None)
    if example is not None:
        loop = first_loop(results.findings([example]))
        if loop is not None:
            print(f"For example {example}: {finding_text(loop)}: {loop.span[:100]!r}\n")
    for sentence in headline:
        print(sentence)


def _attack(w: dict[str, Any], u: dict[str, Any]) -> list[list[float]]:
    """Return examples with which only U reaches its objective: rank one, along W's pull (asymmetric convergence)."""
    target, attacker = _agent(w), _agent(u)
    gap = attacker.objective - target.objective
    found = adversary(target.covariance, gap, target.step_size, attacker.step_size)
    examples: list[list[float]] = found.examples.tolist()
    return examples


def _agent(settings: dict[str, Any]) -> Any:
    return AgentSpec.model_validate({"name": "agent", **settings}).build()


def _prompt(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an agent that a helper knows: objective, geometry and step size."""
    return {k: v for k, v in settings.items() if k != "kind"}
