"""Calibration of the loop detector: the threshold for a given rate of false alarms.

A run is scored by the maximum of the detector's score over its turns, up to a horizon, and over all kinds of loop. The
threshold is one order statistic of the scores of n normal runs; a score strictly above it raises the alarm. A further
normal run of the same source then raises any alarm within the horizon with probability at most the rate. Nothing is
promised for other sources or longer runs.

* The plain rule is split conformal prediction (Papadopoulos et al. 2002; Vovk, Gammerman and Shafer 2005): the
  ceil((n + 1)(1 - rate))-th smallest score. The rate holds on average over calibration sets, for exchangeable runs.
* With a confidence, the rate holds for this threshold with that confidence: the k-th smallest score, where k is the
  smallest number that a Binomial(n, 1 - rate) variable stays below with that probability (Wilks 1941; Vovk 2012,
  "Conditional validity of inductive conformal predictors"). Runs must be independent.
* With clusters (one task, one pair of models), the rate holds for a run of a NEW cluster: hierarchical conformal
  prediction (Lee, Barber and Willett 2023, arXiv 2306.06342). The threshold is the (1 - rate)-quantile of the scores.
  Each weighs 1 / ((K + 1) * runs of its cluster); the weight 1 / (K + 1) is at infinity. With a confidence as well, one
  run of each cluster is drawn (single subsampling: Dunn, Wasserman and Ramdas 2022, arXiv 1809.07441).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from a2a_ray.analysis.loops.conversation_kind import AUTO
from a2a_ray.analysis.loops.repetition_sum import MAX_SCORE
from a2a_ray.analysis.loops.scan import scan_many
from a2a_ray.analysis.loops.threshold import AlarmRate, Calibration, score_name
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.message import ASIDE
from a2a_ray.core.transcript import Transcript

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from a2a_ray.analysis.text.embedding import Embedder

    Scores: TypeAlias = NDArray[np.float64]

MIN_THRESHOLD = 0.05
"""Lower limit of a threshold of the detector's score, even if normal runs never repeat anything."""

_FOLDS = 5
_ROUNDING = 1e-12
"""Sums of weights that differ by less are equal: far below any difference between two rates that matters."""


def fit(
    normal_runs: Iterable[Transcript | ArrayLike],
    false_alarm_rate: float,
    horizon: int,
    *,
    confidence: float | None = None,
    clusters: Sequence[Hashable] | None = None,
    embedder: Embedder | None = None,
    top: float | None = None,
    score: str = "",
    kind: str = "",
    seed: int = 0,
) -> Calibration:
    """Return the lowest threshold that keeps the false-alarm rate, by the rules in the module's docstring.

    normal_runs: runs without loops of the source to be watched: transcripts, scored by the loop detector with
        `embedder`, or scores per turn, shape (turns,) or (turns, kinds). Turns beyond the horizon are cut off.
    false_alarm_rate: largest share of normal runs that ever raise an alarm, between 0 and 1. horizon: in turns.
    confidence: e.g. 0.95 for a rate that holds for this threshold with 95 % confidence; needs more runs (59 at 0.05).
    clusters: the cluster of each run, for a rate that holds for a run of a new cluster.
    top, score: the largest possible score, unbounded by default, and its name; the detector's own for transcripts.
    kind: of the conversations; kept in the calibration.
    seed: of the folds of `achieved`, and of the draw of one run per cluster.

    Raises ConfigurationError for too few runs or clusters (n >= 1 / rate - 1 are needed; more with a confidence), a
    threshold that no score can exceed, scores that are not finite or above `top`, and settings out of range.
    """
    _check_settings(false_alarm_rate, horizon, confidence)
    runs = list(normal_runs)
    if top is None:
        top, score = (MAX_SCORE, _score_name(embedder)) if _has_transcripts(runs) else (math.inf, score)
    highest, shorter = _highest(runs, horizon, embedder)
    number = _cluster_numbers(clusters, len(highest))
    _check_runs(highest, top, number, clusters is not None, false_alarm_rate, confidence)
    draw = np.random.default_rng(seed)
    threshold = _threshold(highest, number, false_alarm_rate, confidence, draw)
    if top == MAX_SCORE:
        threshold = max(MIN_THRESHOLD, threshold)
    _check_threshold(threshold, highest, top)
    return Calibration(
        threshold=threshold,
        rate=false_alarm_rate,
        horizon=horizon,
        runs=len(highest),
        shorter=shorter,
        confidence=confidence,
        clusters=None if clusters is None else len(set(number)),
        achieved=_cross_fitted(highest, number, false_alarm_rate, confidence, draw),
        score=score,
        kind=kind,
    )


def check(
    calibration: Calibration, runs: Iterable[Transcript | ArrayLike], embedder: Embedder | None = None
) -> AlarmRate:
    """Return the rate of alarms within the horizon among other runs, e.g. held-out runs or runs of another source.

    runs, embedder: as in `fit`. The interval assumes independent runs. Raises ConfigurationError.
    """
    highest, _ = _highest(runs, calibration.horizon, embedder)
    return AlarmRate.of(int((highest > calibration.threshold).sum()), len(highest))


def _check_settings(rate: float, horizon: int, confidence: float | None) -> None:
    if not 0 < rate < 1:
        raise ConfigurationError(f"false_alarm_rate: {rate}; expected a number between 0 and 1, such as 0.03")
    if horizon < 1:
        raise ConfigurationError(f"horizon: {horizon}; expected at least 1 turn")
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigurationError(f"confidence: {confidence}; expected a number between 0 and 1, such as 0.95")


def _check_runs(
    highest: Scores, top: float, number: NDArray[np.intp], clustered: bool, rate: float, confidence: float | None
) -> None:
    """Raise ConfigurationError for scores above `top`, and for fewer runs or clusters than the rate needs."""
    if (highest > top).any():
        raise ConfigurationError(
            f"normal_runs: a score of {highest.max():g}; expected at most {top:g}, the top of its range"
        )
    count = len(set(number))
    if (lacking := _lacking(count, rate, confidence)) is not None:
        unit = "clusters" if clustered else "runs"
        raise ConfigurationError(f"normal_runs: {count} {unit}; {lacking}. Give more, or allow a higher rate")


def _check_threshold(threshold: float, highest: Scores, top: float) -> None:
    if threshold >= top:
        raise ConfigurationError(
            f"normal_runs: the threshold would be {threshold:g}, the top of the score's range, so that no score could"
            f" raise an alarm ({(highest >= top).sum()} of {len(highest)} runs reach it); expected runs without loops."
            " Remove the looping runs, or allow a higher rate"
        )


def _highest(runs: Iterable[Transcript | ArrayLike], horizon: int, embedder: Embedder | None) -> tuple[Scores, int]:
    """Return the score of each run, shape (n,), and the number of runs that ended before the horizon."""
    given = list(runs)
    transcripts = [run for run in given if isinstance(run, Transcript)]
    scanned = iter(detector_scores(transcripts, embedder)) if transcripts else iter(())
    highest, shorter = [], 0
    for place, run in enumerate(given):
        scores = np.asarray(next(scanned) if isinstance(run, Transcript) else run, dtype=np.float64)
        if scores.ndim not in (1, 2) or not scores.size or not np.isfinite(scores).all():
            raise ConfigurationError(
                f"normal_runs: run {place} has scores of shape {scores.shape}, {np.isnan(scores).sum()} of them NaN;"
                " expected finite scores of shape (turns,) or (turns, kinds), at least one turn"
            )
        highest.append(scores[:horizon].max())
        shorter += len(scores) < horizon
    return np.array(highest, dtype=np.float64), shorter


def detector_scores(
    transcripts: Sequence[Transcript],
    embedder: Embedder | None = None,
    progress: Callable[[int, int], None] | None = None,
    conversation_kind: str = AUTO,
) -> list[list[float]]:
    """Return the detector's score after each message of each transcript, without the effect of any alarm.

    progress: see `scan_many`.
    """
    # An alarm that ends resets the score. Below the largest score there is none.
    settings = {"threshold": math.nextafter(MAX_SCORE, 0), "conversation_kind": conversation_kind}
    scans = scan_many(transcripts, embedder, progress, **settings)
    return [
        [score for message, score in zip(run.turns, scan.scores, strict=True) if message.kind not in ASIDE]
        for run, scan in zip(transcripts, scans, strict=True)
    ]


def _has_transcripts(runs: Iterable[Any]) -> bool:
    return any(isinstance(run, Transcript) for run in runs)


def _score_name(embedder: Embedder | None) -> str:
    return score_name(None if embedder is None else embedder.name)


def _cluster_numbers(clusters: Sequence[Hashable] | None, runs: int) -> NDArray[np.intp]:
    """Return the number of each run's cluster, shape (runs,). Without clusters, each run is a cluster of its own."""
    if clusters is None:
        return np.arange(runs)
    if len(clusters) != runs:
        raise ConfigurationError(f"clusters: {len(clusters)} labels for {runs} runs; expected one for each run")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.intp)


def _lacking(count: int, rate: float, confidence: float | None) -> str | None:
    """Return how many runs (or clusters) the rate needs, as a sentence; None if `count` is enough."""
    if confidence is None:
        needed = math.ceil(1 / rate - 1 - _ROUNDING)
        rule = "n >= 1 / rate - 1"
    else:
        needed = math.ceil(math.log(1 - confidence) / math.log(1 - rate) - _ROUNDING)
        rule = f"1 - (1 - rate)^n >= {confidence:g}"
    return None if count >= needed else f"expected at least {needed} for a rate of {rate:g} ({rule})"


def _threshold(
    highest: Scores, number: NDArray[np.intp], rate: float, confidence: float | None, draw: np.random.Generator
) -> float:
    """Return the order statistic. There are enough runs: see `_lacking`."""
    if confidence is not None:
        from scipy.special import bdtr

        one_each = np.sort(highest[_one_of_each(number, draw)])
        below = bdtr(np.arange(len(one_each)), len(one_each), 1 - rate)
        return float(one_each[np.searchsorted(below, confidence - _ROUNDING)])
    order = np.argsort(highest, kind="stable")
    size = np.bincount(number)
    weight = 1 / (np.count_nonzero(size) + 1) / size[number[order]]
    return float(highest[order][np.searchsorted(np.cumsum(weight), 1 - rate - _ROUNDING)])


def _one_of_each(number: NDArray[np.intp], draw: np.random.Generator) -> NDArray[np.intp]:
    """Return the index of one run of each cluster, drawn at random."""
    shuffled = draw.permutation(len(number))
    return shuffled[np.unique(number[shuffled], return_index=True)[1]]


def _cross_fitted(
    highest: Scores, number: NDArray[np.intp], rate: float, confidence: float | None, draw: np.random.Generator
) -> AlarmRate | None:
    """Count alarms of one run per cluster above the threshold fitted on the clusters of the other folds."""
    present = draw.permutation(np.unique(number))
    needed = next(n for n in range(len(present) + 1) if _lacking(n, rate, confidence) is None)
    if len(present) <= needed:
        return None
    folds = min(max(_FOLDS, math.ceil(len(present) / (len(present) - needed))), len(present))
    judged = np.isin(np.arange(len(number)), _one_of_each(number, draw))
    alarms = 0
    for left_out in np.array_split(present, folds):
        out = np.isin(number, left_out)
        threshold = _threshold(highest[~out], number[~out], rate, confidence, draw)
        alarms += int((highest[out & judged] > threshold).sum())
    return AlarmRate.of(alarms, len(present))
