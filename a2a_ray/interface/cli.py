"""The `a2a-ray` command: registers the commands, prints errors as one sentence and sets the exit status.

Each command is in `interface/commands/`. A command imports heavy modules when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from a2a_ray.core.errors import A2AError, AgentError, AuthenticationError, ConfigurationError, PlacementError
from a2a_ray.core.validation import plainer
from a2a_ray.interface.command_helpers import INTERRUPTED
from a2a_ray.interface.commands import (
    analyze_commands,
    calibrate_command,
    demo_command,
    export_command,
    init_command,
    list_command,
    report_command,
    reproduce_commands,
    run_commands,
    show_command,
)
from a2a_ray.runtime.progress import print_status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Run agent-to-agent conversations on Ray, store every turn, and find repetitive loops and biased equilibria.

    \b
    First look:         a2a-ray demo
    Your experiment:    a2a-ray init && a2a-ray run experiment.yaml
    Results of a run:   a2a-ray analyze RUN (also ls, show, detect, report, export)
    Your transcripts:   a2a-ray analyze FILE.jsonl
    Published results:  a2a-ray reproduce misaligned, a2a-ray reproduce loops

    \b
    Exit status:
      0    success
      1    some conversations failed, the budget is spent or a server refused
           the key; `a2a-ray resume RUN` continues
      2    invalid input; nothing was started
      130  interrupted; `a2a-ray resume RUN` continues""",
)

app.command()(demo_command.demo)
app.command()(init_command.init)
app.command()(run_commands.run)
app.command()(run_commands.resume)
app.command("ls")(list_command.list_runs)
app.command()(show_command.show)
app.command()(analyze_commands.analyze)
app.command()(analyze_commands.detect)
app.command()(calibrate_command.calibrate)
app.command()(report_command.report)
app.command()(export_command.export)
app.add_typer(reproduce_commands.app, name="reproduce")


def _print_version(requested: bool) -> None:
    if requested:
        import a2a_ray

        print(a2a_ray.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: errors become one sentence on standard error, with the exit status of the help."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise it prints a warning about forks
    try:
        code: Any = app(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except AuthenticationError as error:  # the run was started and can be resumed
        print_status(f"Error: {error}")
        sys.exit(1)
    except (ConfigurationError, PlacementError, AgentError) as error:
        print_status(f"Error: {error}")
        sys.exit(2)
    except A2AError as error:
        print_status(f"Error: {error}")
        sys.exit(1)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  (the reader, such as head, has closed the pipe)
        sys.exit(0)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error of typer
            raise
        context, sentence = getattr(error, "ctx", None), plainer(error.format_message())
        command = context.command_path if context is not None else "a2a-ray"
        # Without arguments the message is the whole help.
        print_status(sentence if "\n" in sentence else f"Error: {sentence.rstrip('.')} (help: {command} -h)")
        sys.exit(2)


if __name__ == "__main__":
    main()
