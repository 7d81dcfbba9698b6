"""`a2a-ray analyze` and `a2a-ray detect`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.command_helpers import analysis_settings, check_writable, detector_embedder, explain_continue
from a2a_ray.interface.options import (
    AUTO,
    NO_EMBEDDER,
    Address,
    AlarmsFile,
    AsJson,
    DetectorEmbedder,
    EmbedderName,
    Judge,
    Kind,
    Source,
    Threshold,
)
from a2a_ray.runtime.progress import print_status


def analyze(
    source: Source,
    embedder: EmbedderName = NO_EMBEDDER,
    threshold: Threshold = None,
    kind: Kind = AUTO,
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
        results = analyze_source(source, analysis_settings(embedder, threshold, kind), workers=workers, address=address)
    if as_json:
        results.write_json(sys.stdout)
    else:
        print_results(results)


def detect(
    source: Source,
    alarms: AlarmsFile = None,
    embedder: DetectorEmbedder = AUTO,
    threshold: Threshold = None,
    kind: Kind = AUTO,
    judge: Judge = None,
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
    from a2a_ray.interface.tables import print_guarantee, print_judged, print_loops
    from a2a_ray.report.analyze_source import analyze_source
    from a2a_ray.report.judge_source import add_judge, load_judge

    asked = None if judge is None else load_judge(judge, source)
    if alarms is not None:
        check_writable(alarms)
        if Path(source).exists() and alarms.exists() and alarms.samefile(source):
            raise ConfigurationError(f"{alarms}: contains the transcripts; choose another file for the alarms")
    embedder = detector_embedder(source, threshold) if embedder.lower() == AUTO else embedder
    with explain_continue():
        results = analyze_source(source, analysis_settings(embedder, threshold, kind), only=(ANALYZER,))
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
        print_guarantee(results, threshold, kind)
