"""The loop rule of arXiv 2512.06256: the outputs of a round are close to each other for several rounds.

The publication applies thresholds to the four distances between the two outputs of a round, for at least three rounds
in a row. Its thresholds were set by hand and are not public. **The thresholds here are ours.** They lie between the
distances of unrelated English prose and those of near-copies (MiniLM embeddings; adjacent passages of 40 words of a
novel; a near-copy is a passage with a fifth of its words replaced at random):

    distance     neighbours: least, 1 %, median   near-copies: median, 99 %, largest   threshold
    cosine       0.25, 0.39, 0.66                 0.19, 0.47, 0.62                     0.30
    Jaccard      0.77, 0.78, 0.88                 0.30, 0.39, 0.40                     0.50
    BLEU         0.74, 0.92, 0.99                 0.40, 0.51, 0.53                     0.60
    coherence    0.00, 0.00, 0.07                 0.04, 0.21, 0.29                     0.15

They were not tuned on labelled loops. The combination of the four is not public either. Here a round is below if each
defined distance among cosine, Jaccard and BLEU is below its threshold: embeddings alone find two texts on one topic
close, word counts alone find two short replies close. The coherence difference hardly separates copies from neighbours,
so it does not decide: the finding reports whether it agrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from a2a_ray.analysis.text import text_distances as text
from a2a_ray.analysis.text.exact_repetition import repeated_phrase
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import LOOP, NOT_APPLICABLE, RECOVERED, Finding
from a2a_ray.core.transcript import Transcript

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from a2a_ray.analysis.text.embedding import Embedder

DECIDING = ("cosine", "jaccard", "bleu")
"""The distances that decide whether a round is below."""

_LARGEST = {"cosine": 2.0, "jaccard": 1.0, "bleu": 1.0, "coherence": 2.0}


@dataclass(frozen=True, slots=True)
class PaperRuleMatch:
    """The first match of the paper's rule.

    onset_round, onset_turn: the first of the rounds in a row (counted from 1), and its first turn.
    rounds: number of rounds in a row.
    distances: mean of each deciding distance over those rounds; without embeddings there is no cosine.
    supported: whether the coherence difference stayed below its threshold too; None if it is undefined.
    """

    onset_round: int
    onset_turn: int
    rounds: int
    distances: dict[str, float]
    supported: bool | None


class PaperLoopRule:
    """The rule: below the thresholds for at least `rounds` rounds in a row.

    Raises ConfigurationError for a threshold that no pair of texts, or every pair, is below.
    """

    def __init__(
        self,
        cosine: float = 0.30,
        jaccard: float = 0.50,
        bleu: float = 0.60,
        coherence: float = 0.15,
        rounds: int = 3,
    ) -> None:
        self.thresholds = {"cosine": cosine, "jaccard": jaccard, "bleu": bleu, "coherence": coherence}
        for name, threshold in self.thresholds.items():
            if not 0 < threshold <= _LARGEST[name]:
                raise ConfigurationError(
                    f"{name}: {threshold}; expected a threshold above 0 and at most {_LARGEST[name]:g}"
                )
        if rounds < 1:
            raise ConfigurationError(f"rounds: {rounds}; expected at least 1")
        self.rounds = rounds

    def find(self, series: Mapping[str, NDArray[np.float64]], turns: Sequence[int]) -> PaperRuleMatch | None:
        """Return the first `rounds` or more rounds in a row below the thresholds, or None.

        series: name of a distance -> its value in each round, shape (n_rounds,), NaN if undefined.
        turns: the number of the first turn of each round, length n_rounds.
        """
        below = np.ones(len(turns), dtype=bool)
        defined = np.zeros(len(turns), dtype=bool)
        for name in DECIDING:
            values = series[name]
            defined |= ~np.isnan(values)
            below &= np.isnan(values) | (values < self.thresholds[name])
        start = 0
        for stop, one in enumerate([*(below & defined), False]):
            if one:
                continue
            if stop - start >= self.rounds:
                return self._finding(series, turns, start, stop)
            start = stop + 1
        return None

    def _finding(
        self, series: Mapping[str, NDArray[np.float64]], turns: Sequence[int], start: int, stop: int
    ) -> PaperRuleMatch:
        means = {}
        for name in DECIDING:
            values = series[name][start:stop]
            if not np.isnan(values).all():
                means[name] = float(np.nanmean(values))
        coherence = series["coherence"][start:stop]
        coherence = coherence[~np.isnan(coherence)]
        supported = bool((coherence < self.thresholds["coherence"]).all()) if len(coherence) else None
        return PaperRuleMatch(start + 1, turns[start], stop - start, means, supported)


class PaperRuleAnalyzer:
    """The rule on whole conversations, as findings."""

    name, version = "paper_rule", "1"

    def __init__(self, embedder: Embedder | None = None, rule: PaperLoopRule | None = None) -> None:
        self.rule = rule or PaperLoopRule()
        self._embedder = embedder

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the findings; JSON."""
        found: dict[str, Any] = {**self.rule.thresholds, "rounds": self.rule.rounds}
        return found if self._embedder is None else found | {"embedder": self._embedder.identity}

    def texts(self, transcript: Transcript) -> list[str]:
        """Return the texts that will be embedded."""
        return text.texts(transcript) if text.is_text(transcript) else []

    def findings(self, transcript: Transcript) -> list[Finding]:
        """Return one finding. Its evidence has `series`, the distances of each round, and `drift` of each turn.

        score: the number of rounds in a row below the thresholds. threshold: the required number.
        """
        own: dict[str, Any] = {
            "conversation_id": transcript.id,
            "analyzer": self.name,
            "analyzer_version": self.version,
            "settings": self.settings,
            "through_seq": len(transcript),
            "threshold": float(self.rule.rounds),
        }
        if not text.is_text(transcript):
            return [Finding(**own, status=NOT_APPLICABLE, reason="the distances need text; the messages are vectors")]
        measured = text.distances(transcript, self._embedder)
        evidence: dict[str, Any] = {
            "series": {name: _rounded(v) for name, v in measured.rounds.items() if not np.isnan(v).all()},
        }
        if not np.isnan(measured.drift).all():
            evidence["drift"] = _rounded(measured.drift)
        rounds = transcript.rounds()
        match = self.rule.find(measured.rounds, [r[0].turn for r in rounds])
        if match is None:
            return [Finding(**own, score=0.0, evidence=evidence)]
        after = rounds[match.onset_round - 1 + match.rounds :]
        far = ", ".join(f"{name} {value:.2f}" for name, value in match.distances.items())
        return [
            Finding(
                **own,
                kind="close_rounds",
                status=RECOVERED if after else LOOP,
                reason=f"{match.rounds} rounds in a row are close, from turn {match.onset_turn} on ({far})",
                onset_turn=match.onset_turn,
                alarm_turn=rounds[match.onset_round - 2 + self.rule.rounds][-1].turn,
                recovered_turn=after[0][0].turn if after else None,
                score=float(match.rounds),
                span=repeated_phrase(transcript, match.onset_turn),
                evidence=evidence | {"distances": match.distances, "supported": match.supported},
            )
        ]


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    return [None if value != value else round(value, 4) for value in values.tolist()]
