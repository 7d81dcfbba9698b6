"""`a2a-ray reproduce misaligned` and `a2a-ray reproduce loops`: the published experiments, run on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from a2a_ray.interface.command_helpers import INTERRUPTED, explain_resume
from a2a_ray.interface.options import AsJson, StudyFolder
from a2a_ray.runtime.progress import print_status

if TYPE_CHECKING:
    from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
    from a2a_ray.reproduce.misaligned.study_settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Run the published experiments on this machine, and compare what is measured with what is predicted.",
)

Dim = Annotated[int, typer.Option("--dim", metavar="D", help="Dimensions, 2 to 50; trained weights: 2, 5, 10, 20.")]
Pairs = Annotated[int, typer.Option(metavar="N", help="Random pairs of agents.")]
PairRounds = Annotated[
    int | None, typer.Option(metavar="N", help="Rounds of every conversation; by default until the pair settles.")
]
Condition = Annotated[float, typer.Option(metavar="C", help="Condition number of each prompt's covariance.")]
StepSize = Annotated[float, typer.Option(metavar="ETA", help="Step size of both agents, below 2.")]
StudySeed = Annotated[int, typer.Option(metavar="N", help="The same seed gives the same results.")]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Run one experiment: plateau, rounds, order, geometry, adversary, defences, helper or noise.",
    ),
]
Models = Annotated[
    str,
    typer.Option(metavar="A,B,...", help="Embedded models, folders or Hub ids; the first two are the main pair."),
]
Tokens = Annotated[str, typer.Option(metavar="N,...", help="Limits of tokens per turn; 50 is always included.")]
Temperatures = Annotated[str, typer.Option(metavar="T,...", help="Sampling temperatures; 0.7 is always included.")]
Openings = Annotated[
    int, typer.Option(metavar="N", min=1, help="Openings; each starts one conversation in every setting.")
]
Rounds = Annotated[int, typer.Option(metavar="N", min=1, help="Rounds of every conversation; published: 25.")]
LoopSeed = Annotated[int, typer.Option(metavar="N", min=0, help="The same seed gives the same conversations.")]
StudyEmbedder = Annotated[
    str, typer.Option(metavar="NAME|none", help="Sentence-embedding model, or none (word-based distances only).")
]
Labelled = Annotated[
    Path | None,
    typer.Option(metavar="FILE.jsonl", help="Labelled transcripts: adds ROC and precision-recall curves."),
]


@app.callback()
def _group() -> None:
    pass


@app.command()
def misaligned(
    dim: Dim = 10,
    pairs: Pairs = 200,
    rounds: PairRounds = None,
    condition: Condition = 10.0,
    step_size: StepSize = 0.5,
    seed: StudySeed = 0,
    only: Only = None,
    out: StudyFolder = Path("misaligned"),
    as_json: AsJson = False,
) -> None:
    """Biased equilibria (arXiv 2511.08710): where two agents with misaligned objectives settle.

    Eight experiments, each measured next to its closed form: plateau against angle, error per round, turn order,
    prompt geometry, adversary, defences, helper, noise. About a minute.

    \b
    a2a-ray reproduce misaligned                           writes into ./misaligned
    a2a-ray reproduce misaligned --dim 5 --pairs 50 -o d5  smaller
    a2a-ray reproduce misaligned --only adversary --json   one experiment

    \b
    Output: report.html explains every figure; figures/ has each figure as a file;
    results.json has every measured and predicted value. Errors are relative to
    the gap, the distance between the two objectives.
    """
    from a2a_ray.reproduce.misaligned.misaligned_study import chosen, prepare, write_results
    from a2a_ray.reproduce.misaligned.study_settings import Settings

    settings = Settings(dim, pairs, rounds, seed, condition, step_size)
    names = chosen(only)
    prepare(out)
    if not settings.has_trained:
        print_status(f"No trained weights exist for {dim} dimensions: trained agents are skipped.")
    started = time.perf_counter()
    finished, interrupted = _run_experiments(names, settings)
    if finished:
        result = write_results(out, settings, finished, time.perf_counter() - started, _command(settings, only))
    if interrupted:
        kept = f"Results of {', '.join(finished)} are in {out / 'report.html'}." if finished else "No results."
        print_status(f"Interrupted in the experiment {interrupted}. {kept}")
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print(json.dumps(result))
        return
    for each in finished.values():
        print(f"* {each.outcome}")
    print(f"Report: {result['report']}")


@app.command()
def loops(
    models: Models = "tiny-llama,tiny-neox",
    tokens: Tokens = "25,100",
    temperatures: Temperatures = "0,0.3,1",
    openings: Openings = 10,
    rounds: Rounds = 25,
    seed: LoopSeed = 0,
    embedder: StudyEmbedder = "sentence-transformers/all-MiniLM-L6-v2",
    labelled: Labelled = None,
    out: StudyFolder = Path("loops"),
    as_json: AsJson = False,
) -> None:
    """Repetitive loops (arXiv 2512.06256): how often two models that answer each other loop, and why.

    Varies temperature, context, tokens per turn and the pair of models; rates with 95 % intervals. Also measures
    how the published rule depends on its thresholds. Takes some minutes.

    \b
    a2a-ray reproduce loops --openings 4 --rounds 12     a first look
    a2a-ray reproduce loops --models ./small,./large --tokens 20,200
    a2a-ray reproduce loops --labelled chats.jsonl       "loop": true or false per line

    \b
    Output: report.html explains every figure; figures/ has each figure as a file;
    results.json has every rate; sweep.csv has the published rule at every setting
    of its thresholds; the run itself can be read with a2a-ray show.
    """
    from a2a_ray.reproduce.loops.loops_study import LoopStudy, parse_numbers

    names = [name.strip() for name in models.split(",") if name.strip()]
    study = LoopStudy(
        names,
        parse_numbers("--tokens", tokens, int),
        parse_numbers("--temperatures", temperatures, float),
        openings,
        rounds,
        seed,
        embedder,
        labelled,
    )
    with explain_resume():
        result = study.run(out)
    print(json.dumps(result) if as_json else f"Report: {result['report']}")


def _run_experiments(names: Sequence[str], settings: Settings) -> tuple[dict[str, ExperimentResult], str]:
    """Run the experiments in order. Return the results, and the name of the one that Ctrl-C interrupted, or ""."""
    from a2a_ray.reproduce.misaligned.misaligned_study import run_study_experiment

    finished: dict[str, ExperimentResult] = {}
    for number, name in enumerate(names, 1):
        try:
            with _spinner(name, number, len(names)):
                finished[name] = run_study_experiment(name, settings)
        except KeyboardInterrupt:
            return finished, name
    return finished, ""


@contextmanager
def _spinner(name: str, number: int, total: int) -> Iterator[None]:
    """Show the running experiment on standard error: a spinner on a terminal, and a line when it ends."""
    from rich.console import Console

    from a2a_ray.reproduce.misaligned.misaligned_study import EXPERIMENTS

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    text = f"{number} of {total}: {EXPERIMENTS[name].topic}"
    with console.status(text) if console.is_terminal else nullcontext():
        yield
    console.print(f"{text}, {time.perf_counter() - started:.0f} s")


def _command(settings: Settings, only: str | None) -> str:
    """Return the command line that repeats this study."""
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
