"""Turns that repeat earlier ones in other words: meaning that returns at a period."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from a2a_ray.analysis.loops.repetition_sum import RepeatedTurn, RepetitionSum
from a2a_ray.analysis.loops.semantic import REACH, SemanticHistory, SemanticSimilarity, similarity_scale
from a2a_ray.analysis.text.embedding import Embedder

ALARM = 1.99
"""More turns' worth of repetition than this are a loop."""

SHORT, ALONE = 2, 12
"""A turn of this many words weighs half as much as a long one: in the whole conversation, and for one speaker alone.
An interviewer repeats short questions, and the news is in the answers."""

USUAL, FULLY = 0.5, 0.7
"""Similarity, on the embedder's scale: up to `USUAL` for turns about one subject in the same words; from `FULLY` on a
turn is pure repetition."""

BY_NEWS = 0.6
"""Both are higher by this much if all content words are new: repetition in other words runs out of new words."""

BY_WORDING, RECENT = 0.7, 0.4
"""Both are higher by this much if all wording is copied, as a running mean with this weight of the newest turn. Shared
wording raises the similarity without shared meaning; then the words decide."""

NEWS, ANSWERED = 0.6, 0.5
"""A turn with a novelty above `NEWS` lowers the sums of the other speakers, by `ANSWERED` if all of it is new."""

PROGRESS = 25
"""From this many fresh content words on an answer is substantial; twice as many make a repeated question a new one."""

READ, EMBEDDED_CHARACTERS = 1200, 4000
"""The default embedder reads the first of these; the second are embedded. The similarity of a longer turn counts for
the part that is read."""

_QUOTED = 200
_SPEAKERS = 64


class _Sum(RepetitionSum):
    """The sum of one view of the conversation, with the running novelty of its wording."""

    def __init__(self) -> None:
        super().__init__(ALARM)
        self.wording = 1.0
        self.answered = 0.0  # how far others have answered since the speaker's newest turn


class RecurringMeaning:
    """The meanings of the last turns, and the sums of their repetition."""

    def __init__(self) -> None:
        self._history = SemanticHistory()
        self._speakers: dict[str, int] = {}
        self._whole = _Sum()
        self._alone: dict[int, _Sum] = {}
        self._turns: deque[tuple[int, str]] = deque(maxlen=REACH)  # number and quote

    @property
    def sum(self) -> RepetitionSum:
        """The sum with the highest score."""
        return max((self._whole, *self._alone.values()), key=lambda each: each.score)

    def reset(self) -> None:
        """Make the next repeated turn a new onset."""
        for each in (self._whole, *self._alone.values()):
            each.reset()

    def add(
        self, turn: int, speaker: str, text: str, words: Sequence[str], novelty: float, spent: int, embedder: Embedder
    ) -> None:
        """Add a turn. novelty: of its wording, 0 to 1. spent: tokens of the conversation before it."""
        who = self._speakers.setdefault(speaker, min(len(self._speakers), _SPEAKERS - 1))
        alone = self._alone.setdefault(who, _Sum())
        scale = similarity_scale(embedder)
        views = [(self._whole, len(words) / (len(words) + SHORT)), (alone, len(words) / (len(words) + ALONE))]
        if scale.reads(text):
            like = self._history.add(embedder.vector(text[:EMBEDDED_CHARACTERS]), words, who, scale)
            self._turns.append((turn, text[:_QUOTED]))
            self._compare(turn, speaker, text, like, novelty, views, spent)
        else:  # only its words can be new
            self._history.skip(words, who, scale.size)
            self._turns.append((turn, text[:_QUOTED]))
            for view, weight in views:
                view.lower(novelty * weight, turn)
        if novelty > NEWS:
            amount = ANSWERED * (novelty - NEWS) / (1 - NEWS) * views[0][1]
            for other in self._alone.values():
                if other is not alone:
                    other.lower(amount, turn)

    def _compare(
        self,
        turn: int,
        speaker: str,
        text: str,
        like: SemanticSimilarity,
        novelty: float,
        views: list[tuple[_Sum, float]],
        spent: int,
    ) -> None:
        """Add what a turn repeats to the sums of the conversation, and of its speaker alone. views: with weights."""
        alone = views[1][0]
        # A question repeated after a substantial answer is a new question. The unread part of a text is ignored.
        trust = (1 - alone.answered) * min(1.0, READ / len(text))
        alone.answered = 0.0
        for other in self._alone.values():
            if other is not alone:
                other.answered = max(other.answered, min(1.0, max(0.0, like.fresh / PROGRESS - 1)))
        found = ((like.whole, like.news, like.period), (like.own, like.own_news, like.own_period))
        for (view, weight), (similarity, news, back) in zip(views, found, strict=True):
            view.wording += (novelty - view.wording) * views[0][1] * RECENT
            value = repetition(similarity, news, view.wording)
            if value > 0:
                earlier, quote = self._turns[-1 - back]
                repeat = RepeatedTurn(turn, speaker, "semantic", earlier, text[:_QUOTED], quote, min(1.0, similarity))
                view.add(value * trust * weight, repeat, spent)
            else:
                view.lower(-value * weight, turn)


def repetition(similarity: float, news: float, wording: float) -> float:
    """Return how much a turn repeats, -1 to 1.

    similarity: to earlier turns, on the embedder's scale. news: share of new content words, 0 to 1. wording: mean
    novelty of the wording of the last turns, 0 to 1.
    """
    expected = USUAL + BY_NEWS * news + BY_WORDING * (1 - wording)
    return max(-1.0, min(1.0, (similarity - expected) / (FULLY - USUAL)))
