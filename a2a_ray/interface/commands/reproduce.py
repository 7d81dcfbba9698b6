"""`a2a-ray reproduce`: the published experiments, run again on this machine, with figures and predictions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from a2a_ray.reproduce.misaligned.study_settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Run published experiments again: figures, tables of measured against predicted, one JSON object.",
)


@app.callback()
def _group() -> None:
    pass


@app.command()
def misaligned(
    dim: Annotated[
        int, typer.Option("--dim", metavar="D", help="Dimensions, 2 to 50; trained weights: 2, 5, 10, 20.")
    ] = 10,
    pairs: Annotated[int, typer.Option(metavar="N", help="Random pairs of agents.")] = 200,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="Rounds of every talk; by default as many as the rates ask for.")
    ] = None,
    condition: Annotated[float, typer.Option(metavar="C", help="Condition number of each prompt's covariance.")] = 10.0,
    step_size: Annotated[float, typer.Option(metavar="ETA", help="Step of both agents, below 2.")] = 0.5,
    seed: Annotated[int, typer.Option(metavar="N", help="Same seed, same figures.")] = 0,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One experiment: plateau, rounds, order, geometry, adversary, defences, helper or noise.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where report.html, figures/ and results.json go.")
    ] = Path("misaligned"),
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line of standard output.")
    ] = False,
) -> None:
    """Biased equilibria (arXiv 2511.08710): what two agents with misaligned objectives settle on, and what theory says.

    Plateau against the angle between the objectives, error per round, order of turns, geometry of the prompts,
    an adversary and three defences, a helper, noise. About a minute.

    \b
    a2a-ray reproduce misaligned                          into the folder misaligned
    a2a-ray reproduce misaligned --dim 5 --pairs 50 -o d5   smaller
    a2a-ray reproduce misaligned --only adversary --json  one experiment

    \b
    What comes out: report.html, one page that explains each figure; figures/, each figure
    alone; results.json, everything measured and predicted. Errors are relative to the gap,
    the distance between the two objectives.
    """
    from a2a_ray.interface.console import INTERRUPTED
    from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
    from a2a_ray.reproduce.misaligned.misaligned_study import chosen, prepare, run_study_experiment, write_results
    from a2a_ray.reproduce.misaligned.study_settings import Settings
    from a2a_ray.runtime.progress import print_status

    settings = Settings(dim, pairs, rounds, seed, condition, step_size)
    names = chosen(only)
    prepare(out)
    if not settings.has_trained:
        print_status(f"There are no trained weights for {dim} dimensions: trained agents are left out.")
    found: dict[str, ExperimentResult] = {}
    stopped, started = "", time.perf_counter()
    try:
        for name in names:
            with _told(name, len(found) + 1, len(names)):
                found[name] = run_study_experiment(name, settings)
    except KeyboardInterrupt:
        stopped = name
    if found:
        result = write_results(out, settings, found, time.perf_counter() - started, _command(settings, only))
    if stopped:
        kept = (
            f"What was finished ({', '.join(found)}) is in {out / 'report.html'}." if found else "Nothing was finished."
        )
        print_status(f"Interrupted in the experiment {stopped}. {kept}")
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json.dumps(result))
        return
    for each in found.values():
        print(f"* {each.outcome}")
    print(f"Report: {result['report']}")


@app.command()
def loops(
    models: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Embedded models, folders or hub ids; the first two are the main pair."),
    ] = "tiny-llama,tiny-neox",
    tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Most tokens of an answer; 50 is always there.")
    ] = "25,100",
    temperatures: Annotated[
        str, typer.Option(metavar="T,...", help="Sampling temperatures; 0.7 is always there.")
    ] = "0,0.3,1",
    openings: Annotated[int, typer.Option(metavar="N", min=1, help="Openings, one talk of each in a setting.")] = 10,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of every talk; published: 25.")] = 25,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Same seed, same talks.")] = 0,
    embedder: Annotated[
        str, typer.Option(metavar="NAME|none", help="Sentence-embedding model, or none (word measures only).")
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    labelled: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help="Labelled transcripts: ROC and precision-recall of every threshold."),
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="DIR", help="Where the run, report.html and figures/ go.")
    ] = Path("loops"),
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line of standard output.")
    ] = False,
) -> None:
    """Repetitive loops (arXiv 2512.06256): how often two models that answer each other loop, and what it depends on.

    Temperature, what is shown, tokens per turn, equal and unequal models; rates with 95 % intervals. And how much the
    published rule depends on its thresholds. Some minutes; --openings 4 --rounds 12 for a first look.

    \b
    a2a-ray reproduce loops --openings 4 --rounds 12
    a2a-ray reproduce loops --models ./small,./large --tokens 20,200 --temperatures 0,0.5,1
    a2a-ray reproduce loops --labelled talks.jsonl       a talk a line, with "loop": true or false

    \b
    What comes out: report.html; figures/, each figure alone; results.json; sweep.csv, the
    published rule at every setting of its thresholds; and the run itself, for a2a-ray show.
    """
    from a2a_ray.interface.console import resumable
    from a2a_ray.reproduce.loops.factors import numbers_of
    from a2a_ray.reproduce.loops.loops_study import reproduce_loops

    names = [name.strip() for name in models.split(",") if name.strip()]
    wanted = (names, numbers_of("tokens", tokens, int), numbers_of("temperatures", temperatures, float))
    with resumable():
        result = reproduce_loops(*wanted, openings, rounds, seed, embedder, labelled, out)
    if as_json:
        print(json.dumps(result))
    else:
        print(f"Report: {result['report']}")


@contextmanager
def _told(name: str, number: int, total: int) -> Iterator[None]:
    """What is running, on standard error: a spinner on a terminal, and a line when it is done."""
    from rich.console import Console

    from a2a_ray.reproduce.misaligned.misaligned_study import EXPERIMENTS

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    what = f"{number} of {total}: {EXPERIMENTS[name]}"
    with console.status(what) if console.is_terminal else nullcontext():
        yield
    console.print(f"{what}, {time.perf_counter() - started:.0f} s")


def _command(settings: Settings, only: str | None) -> str:
    """What to type to do it again."""
    options = {
        "--dim": settings.dim,
        "--pairs": settings.pairs,
        "--rounds": settings.rounds,
        "--condition": f"{settings.condition:.15g}",
        "--step-size": f"{settings.step_size:.15g}",
        "--seed": settings.seed,
        "--only": only,
    }
    given = [f"{name} {value}" for name, value in options.items() if value is not None]
    return " ".join(["a2a-ray reproduce misaligned", *given])
