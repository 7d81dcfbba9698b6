"""`a2a-ray analyze` and `a2a-ray detect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.command_helpers import analysis_settings, check_writable, explain_continue
from a2a_ray.interface.options import NO_EMBEDDER, Address, AsJson, EmbedderName, Source, Threshold
from a2a_ray.runtime.progress import print_status


def analyze(
    source: Source,
    embedder: EmbedderName = NO_EMBEDDER,
    threshold: Threshold = None,
    workers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Ray tasks at a time, for a run.")] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Find loops and equilibria in a run or in your own transcripts.

    \b
    Loops: the loop detector, next to two baselines (the rule of arXiv 2512.06256
    and exact repetition). Equilibria: wherever positions and objectives are known.
    The findings of a run are stored with it; a second analysis only reads them.
    Turns are numbered from 1, the first message.

    \b
    a2a-ray analyze runs/my-run                   uses Ray above 20,000 turns
    a2a-ray analyze runs/my-run --address auto    on a Ray cluster
    a2a-ray analyze chats.jsonl --json            one object: looped, findings, settings
    """
    from a2a_ray.interface.tables import print_results
    from a2a_ray.report.analyze_source import analyze_source

    with explain_continue():
        results = analyze_source(source, analysis_settings(embedder, threshold), workers=workers, address=address)
    if as_json:
        results.write_json(sys.stdout)
    else:
        print_results(results)


def detect(
    source: Source,
    alarms: Annotated[
        Path | None,
        typer.Option(metavar="OUT.jsonl", help="Write one line per conversation: its id and the index of its alarm."),
    ] = None,
    embedder: EmbedderName = NO_EMBEDDER,
    threshold: Threshold = None,
    judge: Annotated[
        Path | None,
        typer.Option(metavar="JUDGE.yaml", help="Ask a language model where the detector is suspicious; costs calls."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find loops with the loop detector only: where they begin, what repeats, and how many tokens they cost.

    \b
    --alarms writes a file for scorers. Its turn numbers are INDICES, FROM 0, of the
    turn that raised the alarm: among the turns in the file, or among the turns
    that `a2a-ray export` writes for a run. null means no alarm.
    Everywhere else turns are numbered from 1, the first message.
    --judge reads a file with the keys of `judge:` of a specification, such as
    {kind: openai, model: gpt-5-mini, every: 8}. It judges files of transcripts.
    """
    from a2a_ray.analysis.loops import ANALYZER
    from a2a_ray.interface.show_conversations import write_alarms
    from a2a_ray.interface.tables import print_judged, print_loops
    from a2a_ray.report.analyze_source import analyze_source
    from a2a_ray.report.judge_source import add_judge, load_judge

    asked = None if judge is None else load_judge(judge, source)
    if alarms is not None:
        check_writable(alarms)
        if Path(source).exists() and alarms.exists() and alarms.samefile(source):
            raise ConfigurationError(f"{alarms}: contains the transcripts; choose another file for the alarms")
    with explain_continue():
        results = analyze_source(source, analysis_settings(embedder, threshold), only=(ANALYZER,))
        used = {} if asked is None else add_judge(results, asked)
    if alarms is not None:
        write_alarms(results, alarms)
        print_status(f"Wrote {len(results.ids)} alarms to {alarms}")
    if as_json:
        results.write_json(sys.stdout, only=(ANALYZER, "judge"))
    else:
        print_loops(results)
        if asked is not None:
            print_judged(results, used)
