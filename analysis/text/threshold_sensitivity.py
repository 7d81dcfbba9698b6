"""Sensitivity of the loop rule of arXiv 2512.06256 to its thresholds, which were set by hand and not published.

The rule reports a loop if a distance stays below its threshold for k rounds in a row. For one conversation and one
distance this holds exactly for the thresholds above

    critical(conversation) = min over windows of k rounds of (max distance within the window),

so one number per conversation gives the result for every threshold, and a sweep costs no more than one threshold. For
all distances together, with thresholds scaled by one factor, distances are first divided by their thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from a2a_ray.analysis.text.distances import DISTANCES
from a2a_ray.analysis.text.paper_rule import DECIDING
from a2a_ray.core.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Series = Mapping[str, NDArray[np.float64]]

ALL = "all"
"""Cosine, Jaccard and BLEU together, as the rule combines them: each that is defined must be below."""


def critical(series: Series, which: str, thresholds: Mapping[str, float], rounds: int = 3) -> float:
    """Return the threshold above which the rule reports a loop in this conversation; infinite if it never does.

    series: name of a distance -> its value in each round, shape (n_rounds,), NaN if undefined (a round
        without a defined distance is never below).
    which: a distance, or ALL, in units of `thresholds`: 1 stands for exactly these values.
    rounds: how many in a row. Raises ConfigurationError for fewer than 1, or an unknown name.
    """
    if rounds < 1:
        raise ConfigurationError(f"rounds: {rounds}; expected at least 1")
    if which not in (*DISTANCES, ALL):
        raise ConfigurationError(f"which: {which!r}; expected one of {', '.join((*DISTANCES, ALL))}")
    if which == ALL:
        values = np.stack([np.asarray(series[name], np.float64) / thresholds[name] for name in DECIDING])
    else:
        values = np.asarray(series[which], np.float64)[None, :]
    highest = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    highest[np.isnan(values).all(axis=0)] = np.inf
    if len(highest) < rounds:
        return float("inf")
    return float(np.lib.stride_tricks.sliding_window_view(highest, rounds).max(axis=1).min())


@dataclass(frozen=True, slots=True)
class Curve:
    """The accuracy of the rule at every threshold that makes a difference.

    which: a distance, or ALL. thresholds: shape (m,), ascending; false_alarm_rate, recall, precision: at each, shape
    (m,), float64 (precision 1 without alarms). area: under the ROC curve: the probability that a looping conversation
    has a smaller critical threshold than one without a loop; ties count half. average_precision: area under precision
    against recall. best_threshold, best_f1: the best in hindsight, an optimistic upper bound.
    """

    which: str
    thresholds: NDArray[np.float64]
    false_alarm_rate: NDArray[np.float64]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    area: float
    average_precision: float
    best_threshold: float
    best_f1: float


def curve(which: str, criticals: Sequence[float], looped: Sequence[bool]) -> Curve:
    """Return ROC and precision-recall of one rule. criticals: of each conversation, shape (n,). looped: its label.

    Raises ConfigurationError if labels and conversations differ in number, or if all labels are equal.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    at, truth = np.asarray(criticals, np.float64), np.asarray(looped, bool)
    if at.shape != truth.shape:
        raise ConfigurationError(f"labels: {len(truth)} for {len(at)} conversations; expected one each")
    if truth.all() or not truth.any():
        raise ConfigurationError(f"labels: all {len(truth)} are {bool(len(truth) and truth[0])}; expected both kinds")
    finite = np.unique(at[np.isfinite(at)])
    thresholds = np.append(finite, (finite[-1] if len(finite) else 0.0) + 1e-9)  # alarm where critical < threshold
    alarm = at[None, :] < thresholds[:, None]
    hits, false = (alarm & truth).sum(axis=1), (alarm & ~truth).sum(axis=1)
    recall, rate = hits / truth.sum(), false / (~truth).sum()
    precision = np.where(hits + false > 0, hits / np.maximum(hits + false, 1), 1.0)
    f1 = 2 * hits / (hits + false + truth.sum())
    score = -np.where(np.isfinite(at), at, (finite[-1] if len(finite) else 0.0) + 1.0)
    best = int(f1.argmax())
    return Curve(
        which,
        thresholds,
        rate,
        recall,
        precision,
        float(roc_auc_score(truth, score)),
        float(average_precision_score(truth, score)),
        float(thresholds[best]),
        float(f1[best]),
    )


def sweep(
    conversations: Sequence[Series],
    looped: Sequence[bool] | None,
    grid: Mapping[str, Sequence[float]],
    rounds: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yield the results of the rule for every combination of thresholds and numbers of rounds.

    grid: cosine, jaccard, bleu -> thresholds to try. Each row has the setting, `alarms` (conversations
    with an alarm), and with labels hits, false_alarms, missed, precision, recall and f1 (None where undefined).
    """
    for k in rounds:
        for setting in product(*(grid[name] for name in DECIDING)):
            thresholds = dict(zip(DECIDING, setting, strict=True))
            alarm = np.array([critical(series, ALL, thresholds, k) < 1 for series in conversations], bool)
            row: dict[str, Any] = {**thresholds, "rounds": k, "alarms": int(alarm.sum())}
            if looped is not None:
                truth = np.asarray(looped, bool)
                hits, false = int((alarm & truth).sum()), int((alarm & ~truth).sum())
                missed = int(truth.sum()) - hits
                row |= {"hits": hits, "false_alarms": false, "missed": missed}
                row["precision"] = hits / (hits + false) if hits + false else None
                row["recall"] = hits / (hits + missed) if hits + missed else None
                row["f1"] = 2 * hits / (2 * hits + false + missed) if hits + false + missed else None
            yield row
