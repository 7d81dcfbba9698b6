"""The demonstration: both phenomena, from one real run on a local Ray, with no key and no download."""

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
from a2a_ray.report.finding_text import described
from a2a_ray.report.page_parts import BigNumber
from a2a_ray.report.report_page import write_report
from a2a_ray.report.report_source import report_data
from a2a_ray.report.results import Results, analyze_opened
from a2a_ray.report.terminal_table import print_table
from a2a_ray.runtime.progress import print_status
from a2a_ray.runtime.run_experiment import run_experiment

ANGLES = range(0, 181, 10)
DIM = 10
PUBLISHED, LOOPING = "published setting", "looping setting"
OPENINGS, FULL_OPENINGS = 12, 50


def run_demo(out: Path, full: bool) -> dict[str, Any]:
    """Runs the demonstration, prints its table, and gives what `a2a-ray demo --json` prints."""
    started = time.perf_counter()
    print_status("Pairs of LSA agents at 19 angles, and two small language models that answer each other...")
    run = run_experiment(demo_experiment(FULL_OPENINGS if full else OPENINGS), storage=out)
    print_status(f"{run.summary()['turns']:,} turns in {time.perf_counter() - started:.0f} s. Analyzing them...")
    results = analyze_opened(run, AnalysisSettings(DEFAULT_MODEL, detector_embeds=False))
    found = pairs_of(results.findings(), results.labels)
    report = out / "report.html"
    write_report(report, report_data(results, "a2a_ray demo", headline(results, found), _numbers(results, found)))
    _print(results, found)
    pairs = [p for p in found if p.kind == "pair"]
    seconds = time.perf_counter() - started
    print(f"Report: {report}\nRun:    {run.path}   ({seconds:.0f} s)")
    return {
        "misaligned": {"pairs": _angles(pairs), "max_relative_error": largest_error(pairs)},
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
    """The demonstration as one specification: every cell is a pair of agents of its own."""
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
    cells.append(pair("adversary at 90 degrees", w, attacker, rounds=400))  # rank one: other directions settle slowly
    helper = {"kind": "newton_helper", "helped": _prompt(w), "helper": _prompt(at(90))}
    cells.append(pair("helper at 90 degrees", w, at(90), protocol=helper))

    models = [{"name": "lou", "kind": "hf", "model": "tiny-llama"}, {"name": "neo", "kind": "hf", "model": "tiny-neox"}]
    talk = {"openings": {"first": openings}, "max_rounds": 25}
    published = [{**m, "max_new_tokens": 50, "temperature": 0.7, "top_p": 0.95} for m in models]
    looping = [{**m, "max_new_tokens": 50, "temperature": 0.0, "top_p": 0.95} for m in models]
    cells.append(
        {"label": PUBLISHED, "agents": published, "protocol": {"kind": "alternating", "context": "last"}, **talk}
    )
    shown = {"kind": "alternating", "context": {"characters": 400}}
    cells.append({"label": LOOPING, "agents": looping, "protocol": shown, **talk})
    return Experiment.parse(
        {"name": "demo", "agents": cells[0]["agents"], "openings": start["openings"], "sweep": cells}
    )


def largest_error(pairs: list[Pair]) -> float:
    """Of |measured - predicted residual| over the gap, both agents, angles above 0."""
    return max(error for p in pairs if (error := p.largest_error()) is not None)


def headline(results: Results, found: list[Pair]) -> list[str]:
    """What came out, in sentences that follow from the numbers."""
    pairs = [p for p in found if p.kind == "pair"]
    settled = sum(p.settled_round is not None for p in pairs)
    aligned = sorted({p.angle for p in pairs if max(p.measured) < 1e-9})
    where = f"only those at {', '.join(f'{a:g}' for a in aligned)} degrees" if aligned else "none"
    few, total = results.looped(PUBLISHED)
    many, of = results.looped(LOOPING)
    sentences = [
        f"{settled} of {len(pairs)} pairs of LSA agents settled, {where} at their objectives: the others rest in a"
        f" biased equilibrium, within {largest_error(pairs):.1g} of the closed form (relative to the gap).",
        f"Two small language models that answer each other looped in {few} of {total} conversations in the published"
        f" setting (only the last output shown, temperature 0.7) and in {many} of {of} when shown the last 400"
        " characters, greedy.",
    ]
    if few * 2 < total:
        sentences.append(
            "The published 35 of 50 came from models of 12 and 13 billion parameters; models of two million copy less,"
            " and seldom loop in that setting."
        )
    return sentences


def _angles(pairs: list[Pair]) -> int:
    return len({p.angle for p in pairs})


def _numbers(results: Results, found: list[Pair]) -> list[BigNumber]:
    pairs = [p for p in found if p.kind == "pair"]
    return [
        BigNumber(str(_angles(pairs)), "angles between objectives"),
        BigNumber(f"{largest_error(pairs):.1g}", "largest error against the closed form, of the gap"),
        *(
            BigNumber("{} of {}".format(*results.looped(label)), f"conversations looped, {label}")
            for label in (PUBLISHED, LOOPING)
        ),
    ]


def _print(results: Results, found: list[Pair]) -> None:
    """The short table."""
    shown = [p for p in found if p.kind != "pair" or p.angle % 45 == 0 or "actor" in p.label]
    rows = [(p.label, p.gap, p.measured[0], p.predicted[0], p.measured[1], p.predicted[1]) for p in shown]
    columns = ("pair", "gap", "w measured", "w predicted", "u measured", "u predicted")
    print_table("Biased equilibrium: distance of each agent from its own objective", columns, rows)
    loops = results.loop_table
    if loops is not None:
        print_table("Convergence into loops, 25 rounds", loops.columns, loops.rows)
    example = next(iter(results.loops), None)
    if example is not None:
        loop = first_loop(results.findings([example]))
        if loop is not None:
            print(f"For example {example}: {described(loop)}: {loop.span[:100]!r}\n")
    for sentence in headline(results, found):
        print(sentence)


def _attack(w: dict[str, Any], u: dict[str, Any]) -> list[list[float]]:
    """Examples that let U win alone against W: rank one, along W's pull (theory: asymmetric convergence)."""
    target, attacker = _agent(w), _agent(u)
    gap = attacker.objective - target.objective
    found = adversary(target.covariance, gap, target.step_size, attacker.step_size)
    examples: list[list[float]] = found.examples.tolist()
    return examples


def _agent(settings: dict[str, Any]) -> Any:
    return AgentSpec.model_validate({"name": "agent", **settings}).build()


def _prompt(settings: dict[str, Any]) -> dict[str, Any]:
    """What a helper knows of an agent: objective, geometry and step."""
    return {k: v for k, v in settings.items() if k != "kind"}
