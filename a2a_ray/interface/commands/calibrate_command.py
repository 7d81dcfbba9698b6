"""`a2a-ray calibrate`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.interface.command_helpers import check_writable
from a2a_ray.interface.options import AUTO, NO_EMBEDDER, AsJson, EmbedderName, Kind
from a2a_ray.runtime.progress import print_status, progress_bar

if TYPE_CHECKING:
    from a2a_ray.analysis.loops.threshold import Calibration
    from a2a_ray.core.transcript import Transcript

_LISTED = 5
"""This many conversations with the highest scores are named."""


class _Scored(NamedTuple):
    """A conversation with the file or run it comes from, and the detector's scores."""

    source: str
    id: str
    scores: list[float]


def calibrate(
    sources: Annotated[
        list[str], typer.Argument(metavar="RUN|FILE.jsonl ...", help="Conversations without loops, one file a source.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")] = Path("calibration.json"),
    rate: Annotated[
        float,
        typer.Option(metavar="R", min=0, max=1, help="Largest share of such conversations that may raise an alarm."),
    ] = 0.05,
    horizon: Annotated[
        int | None, typer.Option(metavar="TURNS", min=1, help="Length up to which it holds; by default the longest.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(metavar="C", help="Hold for this very threshold with confidence C, such as 0.95.")
    ] = None,
    kind: Kind = AUTO,
    embedder: EmbedderName = NO_EMBEDDER,
    as_json: AsJson = False,
) -> None:
    """Set the loop threshold on your own conversations, for a false-alarm rate that you choose.

    \b
    Take conversations that do not loop: one that loops raises the threshold. It
    holds for one kind of conversation: the most frequent, or --kind. Each of
    several files is left out in turn, to show the rate on an unseen source.

    \b
    a2a-ray calibrate support.jsonl sales.jsonl --rate 0.05
    a2a-ray detect others.jsonl --threshold calibration.json
    """
    from a2a_ray.analysis.loops.calibration import fit
    from a2a_ray.analysis.loops.repetition_sum import MAX_SCORE
    from a2a_ray.analysis.loops.threshold import score_name

    check_writable(out)
    found, of_kind = _read(sources, kind)
    scored = _scored(found, embedder, kind)
    until = horizon or max(len(each.scores) for each in scored)
    options: dict[str, Any] = {"confidence": confidence, "top": MAX_SCORE, "kind": of_kind}
    options["score"] = score_name(None if embedder.lower() == NO_EMBEDDER else embedder)

    def fit_to(part: Sequence[_Scored]) -> Calibration:
        return fit([each.scores for each in part], rate, until, **options)

    fitted = fit_to(scored)
    fitted.save(out)
    if as_json:
        print(json.dumps(fitted.to_dict()))
    wrote = f"Wrote {out}. Use it: a2a-ray detect FILE --threshold {out}"
    for line in (*_sentences(fitted, scored), *_left_out(scored, fit_to), wrote):
        print_status(line)


def _read(sources: Sequence[str], kind: str) -> tuple[list[tuple[str, Transcript]], str]:
    """Return the conversations of one kind with their sources, and the kind. Raises ConfigurationError."""
    from a2a_ray.analysis.loops.detector import kind_of
    from a2a_ray.report.analyze_source import read_source

    found = [(source, t) for source in sources for t in read_source(source) if t.messages]
    if not found:
        raise ConfigurationError(
            f"{', '.join(sources)}: no conversation with a message in it; expected conversations without loops"
        )
    if kind != AUTO:
        return found, kind
    kinds = [kind_of(t.turns) for _, t in found]
    counts = Counter(kinds).most_common()
    kind = counts[0][0]
    if len(counts) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts)
        print_status(f"Kinds of conversation: {listed}. Calibrated on {kind}; --kind takes all of them for one kind.")
    return [each for each, own in zip(found, kinds, strict=True) if own == kind], kind


def _scored(found: Sequence[tuple[str, Transcript]], embedder: str, kind: str) -> list[_Scored]:
    from a2a_ray.analysis.loops.calibration import detector_scores
    from a2a_ray.analysis.text.embedding import load_embedder

    model = load_embedder(None if embedder.lower() == NO_EMBEDDER else embedder)
    with progress_bar("calibrate", "scoring", transient=True) as update:
        scores = detector_scores([t for _, t in found], model, lambda done, total: update(done, total, ""), kind)
    return [_Scored(source, t.id, own) for (source, t), own in zip(found, scores, strict=True)]


def _sentences(fitted: Calibration, scored: Sequence[_Scored]) -> Iterator[str]:
    """Yield what the threshold promises, and the conversations to look at."""
    yield (
        f"Threshold {fitted.threshold:.3g}. {fitted.guarantee} Nothing is known about conversations of other kinds or"
        " sources."
    )
    if fitted.achieved is not None:
        yield f"Alarms in conversations that were left out of the fit: {fitted.achieved}."
    highest = sorted(((max(each.scores), each.id, each.source) for each in scored), reverse=True)[:_LISTED]
    if highest[0][0] > 0:
        named = ", ".join(f"{id} ({score:.2f})" for score, id, _ in highest if score > 0)
        yield f"Highest scores: {named}. Do any of them loop? a2a-ray show {highest[0][2]} {highest[0][1]}"


def _left_out(scored: Sequence[_Scored], fit_to: Callable[[Sequence[_Scored]], Calibration]) -> Iterator[str]:
    """Yield how often the threshold of the other sources raises an alarm in each, if there are several."""
    from a2a_ray.analysis.loops.calibration import check

    sources = dict.fromkeys(each.source for each in scored)
    for source in sources if len(sources) > 1 else ():
        try:
            others = fit_to([each for each in scored if each.source != source])
        except ConfigurationError as error:
            yield f"Without {source}: {error}"
            continue
        rate = check(others, [each.scores for each in scored if each.source == source])
        yield f"With the threshold of the other sources ({others.threshold:.3g}), {source} raises alarms in {rate}."
