"""The threshold of the loop detector: a number, or one that `calibration.py` fitted, and how it is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from a2a_ray.analysis.loops.detector_findings import ANALYZER, VERSION
from a2a_ray.analysis.loops.repetition_sum import MAX_SCORE
from a2a_ray.core.errors import ConfigurationError

_LEXICAL = "lexical"


@dataclass(frozen=True, slots=True)
class AlarmRate:
    """Alarms among runs, and the exact 95 % interval of their rate (Clopper and Pearson 1934)."""

    alarms: int
    runs: int
    low: float
    high: float

    @classmethod
    def of(cls, alarms: int, runs: int) -> AlarmRate:
        """Return the rate of `alarms` in `runs` independent runs. Raises ConfigurationError if there are no runs."""
        from scipy.special import betaincinv  # importing scipy.stats takes half a second

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
    """A threshold and the data it was fitted on. Use it as `LoopDetector(threshold=calibration.threshold)`.

    threshold: a score strictly above it raises an alarm.
    rate: the requested false-alarm rate. horizon: in turns.
    runs: number of normal runs. shorter: number of runs that ended before the horizon. The rate holds for runs that end
        as early as these do.
    confidence: None if the rate holds on average over calibration sets.
    clusters: number of clusters if the rate holds for a run of a new cluster, else None.
    achieved: the rate by cross-fitting: each run is compared with the threshold fitted on the other folds. With
        clusters, one run of each is compared with the other clusters. None if there are too few runs. It describes the
        same source only; `calibration.check` measures another one.
    score: name of the score that the threshold applies to.
    kind: kind of the conversations, such as "chat"; "" if it is not known.
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
    kind: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value; `from_dict` restores an equal calibration."""
        return asdict(self)

    @property
    def embedder(self) -> str | None:
        """Name of the embedder of the score; None without one."""
        name = self.score.partition(", ")[2]
        return None if name in ("", _LEXICAL) else name

    @property
    def guarantee(self) -> str:
        """What the threshold promises, as a sentence."""
        how = "on average over such sets" if self.confidence is None else f"with {self.confidence:.0%} confidence"
        kind = f" of the kind {self.kind}" if self.kind else ""
        return (
            f"Of conversations{kind} like the {self.runs} it was calibrated on, at most {self.rate:.3g} raise an alarm"
            f" within {self.horizon} turns, {how}."
        )

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Calibration:
        """Return the calibration in a JSON value. Raises ConfigurationError if the value is not a calibration."""
        try:
            parts = dict(value)
            parts["achieved"] = parts["achieved"] and AlarmRate(**parts["achieved"])
            return cls(**parts)
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigurationError(
                f"calibration: {str(value)[:60]!r}; expected the output of Calibration.to_dict"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the calibration to a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read a calibration from a JSON file. Raises ConfigurationError if the file is missing or invalid."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigurationError(
                f"calibration {str(path)!r}: {error}; expected a file that Calibration.save wrote"
            ) from error


def given_threshold(threshold: str | None, embedder: str | None) -> float | None:
    """Return the threshold of the option `--threshold`: a number, or the file of a calibration; None for None.

    Raises ConfigurationError if no score can exceed the number, if the file is not a calibration, or if the calibration
    belongs to another score.
    """
    if threshold is None:
        return None
    try:
        number = float(threshold)
    except ValueError:
        return _threshold_in_file(threshold, embedder)
    if not 0 < number < MAX_SCORE:
        raise ConfigurationError(
            f"--threshold: {number:g}; expected a number above 0 and below {MAX_SCORE:g}, the largest possible score"
        )
    return number


def stored_calibration(threshold: str | None) -> Calibration | None:
    """Return the calibration in the file of the option `--threshold`; None if the option is not a file."""
    return Calibration.load(threshold) if threshold is not None and Path(threshold).is_file() else None


def _threshold_in_file(path: str, embedder: str | None) -> float:
    if not Path(path).is_file():
        raise ConfigurationError(
            f"--threshold: {path!r}; expected a number between 0 and {MAX_SCORE:g}, or the file of a calibration"
            " (docs/guides/calibrate.md)"
        )
    calibration, score = Calibration.load(path), score_name(embedder)
    if calibration.score and calibration.score != score:
        raise ConfigurationError(
            f"--threshold: a calibration of the score {calibration.score!r}; expected {score!r}. Pass the --embedder"
            " that it was fitted with, or fit it again (docs/guides/calibrate.md)"
        )
    return calibration.threshold


def score_name(embedder: str | None) -> str:
    """Return the name of the detector's score with an embedder of that name.

    A threshold applies only to the score it was fitted on.
    """
    return f"{ANALYZER} {VERSION}, {embedder or _LEXICAL}"
