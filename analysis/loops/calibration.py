"""Calibration of a detector that watches whole conversations: the threshold for a stated rate of false alarms.

A run is scored by the maximum of the detector's score over its turns, up to a horizon, and over all kinds of loop. The
alarm is raised strictly above one order statistic of the scores of n normal runs, so that a further normal run of the
same source ever alarms within the horizon with probability at most the rate. It says nothing of other sources or of
longer runs.

* The plain rule is split conformal prediction (Papadopoulos et al. 2002; Vovk, Gammerman and Shafer 2005): the
  ceil((n + 1)(1 - rate))-th smallest score. The rate holds on average over calibration sets; exchangeable runs.
* With a confidence it holds for this very threshold, with that confidence: the k-th smallest score, k the least
  number that a Binomial(n, 1 - rate) variable stays below with that probability (Wilks 1941; Vovk 2012, "Conditional
  validity of inductive conformal predictors"); independent runs.
* With clusters (one task, one pair of models) it holds for a run of a NEW cluster: hierarchical conformal prediction
  (Lee, Barber and Willett 2023, arXiv 2306.06342): the (1 - rate)-quantile of the scores, each weighing
  1 / ((K + 1) * runs of its cluster), with the weight 1 / (K + 1) at infinity. With a confidence besides, one
  run of each cluster is drawn (single subsampling: Dunn, Wasserman and Ramdas 2022, arXiv 1809.07441).
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.message import ASIDE
from a2a_ray.core.transcript import Transcript

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from a2a_ray.analysis.text.embedding import Embedder

    Scores: TypeAlias = NDArray[np.float64]

LEAST = 1.0
"""Fitted on transcripts the threshold is at least one turn's worth of repetition, also where normal runs have none."""

_FOLDS = 5
_ROUNDING = 1e-12
"""Sums of weights that differ by less are equal: far below any rate that could be told from another."""


@dataclass(frozen=True, slots=True)
class AlarmRate:
    """Alarms among runs, and the exact 95 % interval of their rate (Clopper and Pearson 1934)."""

    alarms: int
    runs: int
    low: float
    high: float

    @classmethod
    def of(cls, alarms: int, runs: int) -> AlarmRate:
        """The rate of so many alarms in so many independent runs. Raises ConfigurationError where there are no runs."""
        from scipy.special import betaincinv  # scipy.stats has it too, and takes half a second to import

        if not 0 <= alarms <= runs or runs < 1:
            raise ConfigurationError(
                f"alarms: {alarms} of {runs} runs; expected at least 1 run, and not more alarms than runs"
            )
        low = betaincinv(alarms, runs - alarms + 1, 0.025) if alarms else 0.0
        high = betaincinv(alarms + 1, runs - alarms, 0.975) if alarms < runs else 1.0
        return cls(alarms, runs, float(low), float(high))

    @property
    def value(self) -> float:
        """alarms / runs."""
        return self.alarms / self.runs

    def __str__(self) -> str:
        return f"{self.alarms} of {self.runs} ({self.value:.3f}, 95 % interval {self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold, and what it was fitted on. For the detector: `LoopDetector(threshold=calibration.threshold)`.

    threshold: an alarm is a score strictly above it.
    rate: the false-alarm rate that was asked for. horizon: in turns.
    runs: how many normal runs there were. shorter: how many of them ended before the horizon: the promise is for runs
        that end as early as these do.
    confidence: None where the rate holds on average over calibration sets.
    clusters: how many, where it holds for a run of a new cluster; else None.
    achieved: by cross-fitting, each run against the threshold that runs of other folds give; with clusters one run of
        each, against other clusters. None where those are too few for the rate. It speaks of the same source only; for
        another one see `check`.
    score: which score it is a threshold of.
    """

    threshold: float
    rate: float
    horizon: int
    runs: int
    shorter: int = 0
    confidence: float | None = None
    clusters: int | None = None
    achieved: AlarmRate | None = None
    score: str = ""

    def check(self, runs: Iterable[Transcript | ArrayLike], embedder: Embedder | None = None) -> AlarmRate:
        """The rate of alarms within the horizon among other runs, e.g. runs held out or of another source.

        runs, embedder: as in `fit`. The interval takes the runs to be independent. Raises ConfigurationError.
        """
        highest, _ = _highest(runs, self.horizon, embedder)
        return AlarmRate.of(int((highest > self.threshold).sum()), len(highest))

    def to_dict(self) -> dict[str, Any]:
        """JSON value; `from_dict` gives the equal calibration back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calibration:
        """The calibration of a JSON value. Raises ConfigurationError for what is none."""
        try:
            parts = dict(value)
            parts["achieved"] = parts["achieved"] and AlarmRate(**parts["achieved"])
            return cls(**parts)
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigurationError(
                f"calibration: {str(value)[:60]!r}; expected what Calibration.to_dict gives"
            ) from error

    def save(self, path: str | Path) -> None:
        """Writes the calibration to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """The calibration in a JSON file. Raises ConfigurationError where the file is not there or holds none."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigurationError(
                f"calibration {str(path)!r}: {error}; expected a file that Calibration.save wrote"
            ) from error


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
    seed: int = 0,
) -> Calibration:
    """The lowest threshold that keeps the false-alarm rate; the module's docstring has the rules and their sources.

    normal_runs: runs without loops, of the source that is to be watched: transcripts (scored by the loop detector, with
        the embedder if one is given), or scores per turn, shape (turns,) or (turns, kinds). Turns beyond
        the horizon are cut off; runs that end before it are counted in the result.
    false_alarm_rate: at most so many normal runs ever alarm, between 0 and 1. horizon: in turns.
    confidence: e.g. 0.95 for a rate that holds for this threshold with 95 % confidence; needs more runs (59 at 0.05).
    clusters: the cluster of each run, for a rate that holds for a run of a new cluster.
    top: the largest score that there is; the detector's own for transcripts, unbounded for arrays.
    score: name of the score, kept in the result; the detector's own for transcripts.
    seed: of the folds of `achieved`, and of the draw of one run a cluster.

    Raises ConfigurationError: too few runs (n >= 1 / rate - 1 are needed, of clusters as many; more with a confidence);
    a threshold that no score can exceed; scores that are no finite numbers up to `top`; settings out of range.
    """
    if not 0 < false_alarm_rate < 1:
        raise ConfigurationError(
            f"false_alarm_rate: {false_alarm_rate}; expected a number between 0 and 1, such as 0.03"
        )
    if horizon < 1:
        raise ConfigurationError(f"horizon: {horizon}; expected at least 1 turn")
    if confidence is not None and not 0 < confidence < 1:
        raise ConfigurationError(f"confidence: {confidence}; expected a number between 0 and 1, such as 0.95")
    runs = list(normal_runs)
    least = -math.inf
    if any(isinstance(run, Transcript) for run in runs):
        least = LEAST
        top, score = _detector(embedder) if top is None else (top, score)
    highest, shorter = _highest(runs, horizon, embedder)
    top = math.inf if top is None else top
    if (highest > top).any():
        raise ConfigurationError(
            f"normal_runs: a score of {highest.max():g}; expected at most {top:g}, the top of its range"
        )
    number = _numbered(clusters, len(highest))
    if (lacking := _lacking(len(set(number)), false_alarm_rate, confidence)) is not None:
        what = "runs" if clusters is None else "clusters"
        raise ConfigurationError(f"normal_runs: {len(set(number))} {what}; {lacking}; give more or allow a higher rate")
    draw = np.random.default_rng(seed)
    threshold = max(least, _threshold(highest, number, false_alarm_rate, confidence, draw))
    if threshold >= top:
        raise ConfigurationError(
            f"normal_runs: the threshold would be {threshold:g}, the top of the score's range, so that nothing could"
            f" ever alarm ({(highest >= top).sum()} of {len(highest)} runs reach it); expected runs without loops, or"
            " allow a higher rate"
        )
    achieved = _cross_fitted(highest, number, false_alarm_rate, confidence, draw)
    grouped = None if clusters is None else len(set(number))
    return Calibration(
        threshold, false_alarm_rate, horizon, len(highest), shorter, confidence, grouped, achieved, score
    )


def shipped(grade: str = "lexical") -> Calibration:
    """The calibration behind the detector's defaults, for a grade, "lexical" or "semantic"; docs/method/calibration.md.

    Raises ConfigurationError for another grade.
    """
    known = json.loads((files("a2a_ray") / "data" / "loops" / "defaults.json").read_text(encoding="utf-8"))["grades"]
    if grade not in known:
        raise ConfigurationError(unknown("grade", grade, known))
    return Calibration.from_dict(known[grade])


def given_threshold(threshold: str | None, embedder: str | None) -> float | None:
    """The threshold that a user names: a number, or the file of a calibration of the same score; None for none.

    Raises ConfigurationError for what no score can exceed, for no calibration, and for one of another score.
    """
    from a2a_ray.analysis.loops import MOST

    if threshold is None:
        return None
    try:
        number = float(threshold)
    except ValueError:
        if not Path(threshold).is_file():
            expected = f"a number between 0 and {MOST:g}, or the file of a calibration (docs/guides/calibrate.md)"
            raise ConfigurationError(f"--threshold: {threshold!r}; expected {expected}") from None
        given = Calibration.load(threshold)
        score = _score_name(embedder)
        if given.score and given.score != score:
            raise ConfigurationError(
                f"--threshold: a calibration of the score {given.score!r}; expected {score!r}: pass the --embedder that"
                " it was fitted with, or fit it anew (docs/guides/calibrate.md)"
            ) from None
        return given.threshold
    if not 0 < number < MOST:
        raise ConfigurationError(
            f"--threshold: {number:g}; expected above 0, and below {MOST:g}, the largest score there is"
        )
    return number


def _highest(runs: Iterable[Transcript | ArrayLike], horizon: int, embedder: Embedder | None) -> tuple[Scores, int]:
    """The score of each run, shape (n,), and how many runs ended before the horizon."""
    given = list(runs)
    transcripts = [run for run in given if isinstance(run, Transcript)]
    scanned = iter(_scanned(transcripts, embedder)) if transcripts else iter(())
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


def _scanned(transcripts: list[Transcript], embedder: Embedder | None) -> list[list[float]]:
    """The detector's score after each message of each transcript, as it is up to the first alarm."""
    from a2a_ray.analysis.loops import MOST, scan_many

    scans = scan_many(
        transcripts, embedder, threshold=math.nextafter(MOST, 0)
    )  # an alarm that ends changes what follows
    return [
        [score for message, score in zip(run.turns, scan.scores, strict=True) if message.kind not in ASIDE]
        for run, scan in zip(transcripts, scans, strict=True)
    ]


def score_name(embedder: Embedder | None) -> str:
    """The name of the loop detector's score: a threshold fitted on another score does not hold for it."""
    return _score_name(None if embedder is None else embedder.name)


def _score_name(embedder: str | None) -> str:
    from a2a_ray.analysis.loops import ANALYZER, VERSION

    return f"{ANALYZER} {VERSION}, {embedder or 'lexical'}"


def _detector(embedder: Embedder | None) -> tuple[float, str]:
    """The top of the detector's score, and its name."""
    from a2a_ray.analysis.loops import MOST

    return MOST, score_name(embedder)


def _numbered(clusters: Sequence[Hashable] | None, runs: int) -> NDArray[np.intp]:
    """The number of each run's cluster, shape (runs,); without clusters each run is its own."""
    if clusters is None:
        return np.arange(runs)
    if len(clusters) != runs:
        raise ConfigurationError(f"clusters: {len(clusters)} labels for {runs} runs; expected one for each run")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.intp)


def _lacking(count: int, rate: float, confidence: float | None) -> str | None:
    """What so many runs (or clusters) lack for the rate; None where they suffice."""
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
    """The order statistic; `_lacking` has been asked."""
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
    """The place of one run of each cluster, drawn at random."""
    shuffled = draw.permutation(len(number))
    return shuffled[np.unique(number[shuffled], return_index=True)[1]]


def _cross_fitted(
    highest: Scores, number: NDArray[np.intp], rate: float, confidence: float | None, draw: np.random.Generator
) -> AlarmRate | None:
    """Alarms of one run of each cluster against the threshold that the clusters of the other folds give."""
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
