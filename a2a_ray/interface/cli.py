"""The command line. Everything heavy is imported inside the command that needs it, so that help comes at once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from a2a_ray.core.errors import A2AError, AgentError, AuthenticationError, ConfigurationError, PlacementError, plainer
from a2a_ray.interface.commands import reproduce
from a2a_ray.interface.console import (
    INTERRUPTED,
    WORDS_ALONE,
    analysis_settings,
    check_folder,
    finish,
    kept,
    resumable,
)
from a2a_ray.runtime.progress import print_status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Run agent-to-agent conversations on Ray, keep every turn, and find biased equilibria and loops in them.

    \b
    Start with:  a2a-ray demo       both phenomena, no key, no download
    Published:   a2a-ray reproduce misaligned | loops
    Your own:    a2a-ray init && a2a-ray run experiment.yaml
    Then:        a2a-ray ls, show, analyze, detect, report, export
                 (resume goes on where a run stopped)

    \b
    Exit status: 0 all done; 1 some conversations failed, the budget is spent, or
                 a server refused the key (resumable);
                 2 bad input, nothing started; 130 interrupted (resumable)""",
)

app.add_typer(reproduce.app, name="reproduce")

Spec = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="Specification; `a2a-ray init` writes one.")]
RunPath = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URI of a run; `a2a-ray ls` lists them.")]
Source = Annotated[str, typer.Argument(metavar="RUN|FILE.jsonl", help="A run, or transcripts in the exchange format.")]
Storage = Annotated[str, typer.Option(metavar="DIR|URI", help="Where runs are kept: a folder or an object store.")]
Workers = Annotated[int | None, typer.Option(metavar="N", min=1, help="Worker actors that hold conversations.")]
Address = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Ray cluster to use; a local Ray by default.")]
OnFailure = Annotated[
    str,
    typer.Option(
        metavar="recover|raise", help="When a process or node of the run dies: replace it, or end the run (resumable)."
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(metavar="COST", min=0, help="End the run, resumable, before calls cost more; agents need a price."),
]
Threshold = Annotated[
    str | None,
    typer.Option(metavar="X|FILE.json", help="Alarm above this score; or a calibration on conversations of your own."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of standard output.")]
EmbedderName = Annotated[
    str,
    typer.Option(
        "--embedder",
        metavar="NAME|none",
        help="Sentence-embedding model, e.g. all-MiniLM-L6-v2; words alone by default.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        import a2a_ray

        print(a2a_ray.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    full: Annotated[bool, typer.Option("--full", help="50 openings instead of 12: some minutes.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the run and report.html go.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Show both phenomena from real runs on this machine: a biased equilibrium, and convergence into loops."""
    from a2a_ray.reproduce.demo import run_demo

    with resumable():
        result = run_demo(out, full)
    if as_json:
        print(json.dumps(result))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")] = Path("experiment.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a commented specification to start from."""
    from importlib import resources

    check_folder(path)
    if path.exists() and not force:
        raise ConfigurationError(f"{path}: is there already; choose another name, or --force to overwrite it")
    text = resources.files("a2a_ray").joinpath("data/experiment.yaml").read_text(encoding="utf-8")
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from None
    print_status(f"Wrote {path}. Try: a2a-ray run {path} --dry-run")


@app.command()
def run(
    spec: Spec,
    storage: Storage = "runs",
    workers: Workers = None,
    address: Address = None,
    on_failure: OnFailure = "recover",
    budget: Budget = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and start nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Hold every conversation of a specification and keep every turn."""
    from a2a_ray.experiment.spec import Experiment

    experiment = Experiment.load(spec)
    if dry_run:
        from a2a_ray.experiment.estimate import estimate
        from a2a_ray.interface.tables import show_estimate

        experiment.check()
        show_estimate(estimate(experiment), as_json)
        return
    from a2a_ray.runtime.run_experiment import run_experiment

    with resumable():
        done = run_experiment(
            experiment,
            storage=storage,
            workers=workers,
            address=address,
            on_failure=_policy(on_failure),
            budget=budget,
        )
    finish(done, as_json)


@app.command()
def resume(
    path: RunPath,
    workers: Workers = None,
    address: Address = None,
    on_failure: OnFailure = "recover",
    budget: Budget = None,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="Take the run from a driver that still seems to hold it.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Let failed conversations go on too.")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a run where it stopped."""
    from a2a_ray.runtime.run_experiment import resume_run

    with resumable():
        done = resume_run(
            path,
            workers=workers,
            address=address,
            on_failure=_policy(on_failure),
            retry_failed=retry_failed,
            budget=budget,
            takeover=takeover,
        )
    finish(done, as_json)


@app.command("ls")
def list_runs(storage: Storage = "runs", as_json: Json = False) -> None:
    """List the runs in a storage folder."""
    from a2a_ray.interface.tables import show_runs
    from a2a_ray.runtime.analyze_run import looped_by_default
    from a2a_ray.store.run import open_run, run_names

    runs = []
    for name in run_names(storage):
        try:
            found = open_run(name)
            looped = looped_by_default(found)
            runs.append({"run": name, "created": found.manifest["created"], **found.summary(), "looped": looped})
        except (A2AError, KeyError) as error:
            print_status(f"{name}: damaged: {error}")
    show_runs(runs, storage, as_json)


@app.command()
def show(
    source: Source,
    conversation: Annotated[str | None, typer.Argument(metavar="CONVERSATION", help="Id of one conversation.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Most conversations to print; 0 for all.")] = 5,
    embedder: EmbedderName = WORDS_ALONE,
    threshold: Threshold = None,
) -> None:
    """Print conversations as a chat, with what was found in them and what repeats marked.

    A run that was not analyzed yet is analyzed first, as `a2a-ray analyze` does.
    """
    from rich.console import Console

    from a2a_ray.interface.show_conversations import show_conversations
    from a2a_ray.report.results import analyze_source

    with kept():
        results = analyze_source(source, analysis_settings(embedder, threshold))
    shown = show_conversations(results, Console(), conversation, limit)
    if conversation is None and shown < len(results.ids):
        left = len(results.ids) - shown
        more = "1 more conversation" if left == 1 else f"{left} more conversations"
        print_status(
            f"{more}: --limit 0 prints all; a2a-ray show {source} ID prints one. Ids run from"
            f" {results.ids[0]} to {results.ids[-1]}."
        )


@app.command()
def analyze(
    source: Source,
    embedder: EmbedderName = WORDS_ALONE,
    threshold: Threshold = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Ray tasks at once, for a run.")] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Find loops and equilibria in a run or in anybody's transcripts.

    \b
    Loops: by the loop detector, and beside it by the rule of arXiv 2512.06256 and
    by exact repetition. Equilibria: wherever positions and objectives are known.
    The findings of a run are stored with it, and analyzing again is a read.
    Turns are numbered from 1, the first message.

    \b
    a2a-ray analyze runs/my-run                   more than 20,000 turns: on Ray
    a2a-ray analyze runs/my-run --address auto    on a Ray cluster
    a2a-ray analyze talks.jsonl --json            one object: looped, findings, settings
    """
    from a2a_ray.interface.tables import show_results
    from a2a_ray.report.results import analyze_source

    with kept():
        results = analyze_source(source, analysis_settings(embedder, threshold), workers=workers, address=address)
    if as_json:
        results.write_json(sys.stdout)
    else:
        show_results(results)


@app.command()
def detect(
    source: Source,
    alarms: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl", help="Write id and alarm of each conversation, a line each.")
    ] = None,
    embedder: EmbedderName = WORDS_ALONE,
    threshold: Threshold = None,
    as_json: Json = False,
) -> None:
    """Find loops with the loop detector alone: which conversations, since when, what is repeated, what it cost.

    \b
    --alarms is for scorers: the INDEX, FROM 0, of the turn after whose arrival
    the detector first said "loop", among the turns in the file, or among the
    turns of the run that `a2a-ray export` would write. null: it never did.
    Everywhere else turns are numbered from 1, the first message.
    """
    from a2a_ray.analysis.loops import ANALYZER
    from a2a_ray.interface.show_conversations import write_alarms
    from a2a_ray.interface.tables import show_loops
    from a2a_ray.report.results import analyze_source

    if alarms is not None:
        check_folder(alarms)
        if Path(source).exists() and alarms.exists() and alarms.samefile(source):
            raise ConfigurationError(f"{alarms}: holds the transcripts; choose another file for the alarms")
    with kept():
        results = analyze_source(source, analysis_settings(embedder, threshold), only=(ANALYZER,))
    if alarms is not None:
        write_alarms(results, alarms)
        print_status(f"Wrote {len(results.ids)} alarms to {alarms}")
    if as_json:
        results.write_json(sys.stdout, only=(ANALYZER,))
    else:
        show_loops(results)


@app.command()
def report(
    source: Source,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="HTML file to write.")] = Path("report.html"),
    embedder: EmbedderName = WORDS_ALONE,
    threshold: Threshold = None,
) -> None:
    """Write one self-contained HTML file: figures, distances, trajectories, and every conversation as a chat.

    A run that was not analyzed yet is analyzed first, as `a2a-ray analyze` does.
    """
    from a2a_ray.report.report_page import write_report
    from a2a_ray.report.report_source import report_data
    from a2a_ray.report.results import analyze_source

    check_folder(out)
    with kept():
        results = analyze_source(source, analysis_settings(embedder, threshold))
    write_report(out, report_data(results))
    print_status(f"Wrote {out}")


@app.command()
def export(
    path: RunPath,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="JSONL file to write.")] = Path("run.jsonl"),
) -> None:
    """Write a run's transcripts in the exchange format: one conversation a line."""
    from a2a_ray.store.run import open_run
    from a2a_ray.transcripts.jsonl import write_jsonl

    check_folder(out)
    count = write_jsonl(open_run(path).transcripts(), out)
    print_status(f"Wrote {count} conversations to {out}")


def _policy(on_failure: str) -> Any:
    if on_failure not in ("recover", "raise"):
        raise ConfigurationError(f"--on-failure: {on_failure!r}; expected recover or raise")
    return on_failure


def main(arguments: list[str] | None = None) -> None:
    """Entry point: the commands, with errors as one sentence and the right exit status."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks would stand among the output
    try:
        code: Any = app(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except AuthenticationError as error:  # something was started, and can be resumed
        print_status(f"Error: {error}")
        sys.exit(1)
    except (ConfigurationError, PlacementError, AgentError) as error:
        print_status(f"Error: {error}")
        sys.exit(2)
    except A2AError as error:
        print_status(f"Error: {error}")
        sys.exit(1)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (the reader, such as head, has left)
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # no usage error of typer
            raise
        context, sentence = getattr(error, "ctx", None), plainer(error.format_message())
        command = context.command_path if context is not None else "a2a-ray"
        # Without any argument the message is the help itself.
        print_status(sentence if "\n" in sentence else f"Error: {sentence.rstrip('.')} (help: {command} -h)")
        sys.exit(2)


if __name__ == "__main__":
    main()
