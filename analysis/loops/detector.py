"""The streaming loop detector: one object watches one conversation."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Any, Literal, NamedTuple

from a2a_ray.analysis.loops.actions import ACTION, KINDS, ROUNDS, CallHistory, CallRepetition
from a2a_ray.analysis.loops.cumulative_score import MAX_SCORE, CumulativeScore, RepeatedTurn, describe
from a2a_ray.analysis.loops.detector_findings import FindingCollector
from a2a_ray.analysis.loops.lexical import CopiedWords, WordHistory
from a2a_ray.analysis.loops.semantic import REACH, SemanticHistory, load_shared, resolve_embedder, similarity_scale
from a2a_ray.analysis.loops.tokenize import quoted, words
from a2a_ray.analysis.loops.turn_scores import (
    READ,
    answer_share,
    courtesy_score,
    semantic_score,
    shortens_list,
    word_score,
)
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import ASIDE, NUDGE, Message
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

SHORT, ALONE = 2, 12
"""A turn of this many words weighs half as much as a long one: in the whole conversation, and for one speaker alone.
An interviewer repeats short questions, and the news is in the answers."""

NEWS, ANSWERED = 0.6, 0.5
"""A turn with a novelty above `NEWS` lowers the scores of the other speakers, by `ANSWERED` if all of it is new."""

SWAPPED = 0.12
"""Share of new words above which a copy is called a template."""

SILENT = 3
"""This many empty turns in a row are a loop."""

WARNING, RELEASE = 0.6, 0.5
"""Shares of the threshold: above the first the detector warns, below the second it withdraws an alarm."""

TOKENS_PER_WORD = 4 / 3
"""Estimate for a message without a token count."""

EMBEDDED_CHARACTERS = 4000
"""This many characters of a turn are embedded; the default model reads about 1 200."""

_SPEAKERS = 64
_QUOTED = 200


class TurnScore(NamedTuple):
    """How much a turn counts towards a loop.

    value: -1 (new) to 1 (repetition). source: "words", "meaning" or "courtesy". back: how many turns back it points.
    similarity: to what it repeats, 0 to 1.
    """

    value: float
    source: str
    back: int
    similarity: float


class LoopDetector:
    """Observer that reports after every message whether the conversation repeats itself.

    embedder: None or "none" for the words alone. "default", another name or folder (see `embedding.load_embedder`), or
        an Embedder, to find repetition in other words too. A process loads each name once.
    threshold: for `score`; above it the status becomes "loop". By default that of `shipped_calibration`.
    warn_threshold: the same for "warning"; by default 0.6 of the threshold.
    action: the action that a verdict of a loop requests: "record", "stop", or "nudge". A nudge is requested by the
        first verdict of a loop, and then every `cooldown` turns while the loop lasts.

    score: of the newest turn, 0 to MAX_SCORE, in turns' worth of repetition in a row: the largest over all kinds of
        loop. It depends on the messages and the embedder alone: a conversation ever raises an alarm exactly if its
        largest score is above the threshold.

    The detector withdraws an alarm ("recovered", once) when the score falls below half of the threshold. It ignores
    bids, combinations, vectors and nudges (kind "nudge", or `metadata["nudge"]`). Its state pickles, with the embedder
    by name. Raises ConfigurationError for thresholds that no score, or every score, exceeds.
    """

    def __init__(
        self,
        embedder: str | Embedder | None = None,
        threshold: float | None = None,
        warn_threshold: float | None = None,
        action: Literal["record", "nudge", "stop"] = "record",
        cooldown: int = 8,
    ) -> None:
        self._embedder = resolve_embedder(embedder)
        if self._embedder is not None:
            load_shared(self._embedder)  # reports a missing model now; the weights are loaded with the first text
        if threshold is None:
            from a2a_ray.analysis.loops.threshold import shipped_calibration

            threshold = shipped_calibration("lexical" if self._embedder is None else "semantic").threshold
        warn_threshold = WARNING * threshold if warn_threshold is None else warn_threshold
        if not 0 < warn_threshold <= threshold < MAX_SCORE:
            raise ConfigurationError(
                f"warn_threshold: {warn_threshold}, threshold: {threshold};"
                f" expected 0 < warn_threshold <= threshold < {MAX_SCORE:g}, the largest score"
            )
        if action not in ("record", "nudge", "stop"):
            raise ConfigurationError(f"action: {action!r}; expected 'record', 'nudge' or 'stop'")
        if cooldown < 1:
            raise ConfigurationError(f"cooldown: {cooldown}; expected at least 1")
        self.threshold, self.warn_threshold, self.action, self.cooldown = threshold, warn_threshold, action, cooldown
        self.score = 0.0
        self._words = WordHistory()
        self._meanings = SemanticHistory()
        self._speakers: dict[str, int] = {}
        self._whole = CumulativeScore()  # of the whole conversation
        self._alone: dict[int, CumulativeScore] = {}  # of each speaker alone
        self._starts: list[int] = []  # where turns begin, in words of the conversation, as far back as `_words` reaches
        self._turns: list[int] = []  # and their numbers
        self._quotes: deque[str] = deque(maxlen=REACH + 1)
        self._calls = CallHistory()
        self._round: CallRepetition | None = None  # the newest call, if it repeats
        self._silent: list[int] = []  # the empty turns at the end, at most the first SILENT of them
        self._spent = 0  # tokens so far
        self._before_round = 0  # tokens before the first call of that repetition
        self._alarm: dict[str, Any] | None = None  # evidence of the current loop
        self._since = 0  # turns since its first verdict
        self._before_onset = 0  # tokens before the onset of that loop
        self._log = FindingCollector()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the findings; JSON."""
        found: dict[str, Any] = {"threshold": self.threshold, "warn_threshold": self.warn_threshold}
        return found if self._embedder is None else found | {"embedder": load_shared(self._embedder).identity}

    def findings(self, conversation_id: str) -> list[Finding]:
        """Return the loops so far, in order; without a loop, one finding that says so.

        The evidence of the first finding has `scores`: the score after each message, turn 1 first.
        """
        return self._log.findings(conversation_id, self.settings)

    def update(self, message: Message) -> ObserverVerdict:
        """Return the verdict after this message."""
        verdict = self._update(message)
        self._log.add(message, verdict, self.score)
        return verdict

    def _update(self, message: Message) -> ObserverVerdict:
        text = message.content
        if not isinstance(text, str) or is_ignored(message):
            return NOTHING
        waiting = None
        if message.kind in KINDS:
            waiting = self._add_call(message, text)
        else:
            self._add_text(message, text)
        return self._verdict(message.turn, waiting)

    def _add_text(self, message: Message, text: str) -> None:
        """Score a message and add it to the cumulative scores."""
        tokens, numbers = words(text)
        spent = self._spend(message, len(tokens))
        if not tokens:
            if len(self._silent) < SILENT:
                self._silent.append(message.turn)
            return
        self._silent.clear()
        who = self._who(message.sender)
        alone = self._alone.get(who)
        if alone is None:
            alone = self._alone[who] = CumulativeScore()
        self._starts.append(self._words.length)
        self._turns.append(message.turn)
        self._quotes.append(text[:_QUOTED])
        copied = self._words.add(tokens, numbers)
        back = len(self._starts) - bisect_right(self._starts, copied.source) if copied.length else 0
        by_words = TurnScore(word_score(copied), "words", back, 1 - copied.novelty)
        scores = (by_words, by_words)
        if self._embedder is not None:
            scores = self._compare(text, tokens, who, by_words)
        for cumulative, one, short in zip((self._whole, alone), scores, (SHORT, ALONE), strict=True):
            weight = copied.words / (copied.words + short)
            if one.value > 0 and shortens_list(copied):
                continue
            if one.value > 0:
                cumulative.add(self._repeat(message, text, copied, weight, one), spent)
            else:
                cumulative.lower(-one.value * weight, message.turn)
        if copied.novelty > NEWS:
            weight = copied.words / (copied.words + SHORT)
            for other in self._alone.values():
                if other is not alone:
                    other.lower(ANSWERED * weight * (copied.novelty - NEWS) / (1 - NEWS), message.turn)
        if self._starts[0] < self._words.first:
            gone = bisect_right(self._starts, self._words.first)
            del self._starts[:gone], self._turns[:gone]

    def _compare(self, text: str, tokens: list[str], who: int, by_words: TurnScore) -> tuple[TurnScore, TurnScore]:
        """Return the higher score, by words or by meaning: for the whole conversation, and for the speaker alone."""
        embedder = load_shared(self._embedder)
        scale = similarity_scale(embedder)
        if not scale.reads(text):
            self._meanings.skip(tokens, who, scale.courtesies.shape[1])
            return by_words, by_words
        vector = embedder.vector(text[:EMBEDDED_CHARACTERS])
        like = self._meanings.add(vector, tokens, who, scale)
        alone = self._alone[who]
        # A question repeated after a substantial answer is a new question. The unread part of a text is ignored.
        trust = (1 - alone.answered) * min(1.0, READ / len(text))
        alone.answered = 0.0
        for other in self._alone.values():
            if other is not alone:
                other.answered = max(other.answered, answer_share(like.fresh))
        courtesy = TurnScore(courtesy_score(like.courtesy), "courtesy", 1, like.courtesy)
        both = []
        for cumulative, similarity, news, back in (
            (self._whole, like.whole, like.news, like.period),
            (alone, like.own, like.own_news, like.own_period),
        ):
            cumulative.update_wording(1 - by_words.similarity, len(tokens) / (len(tokens) + SHORT))
            value = semantic_score(similarity, news, cumulative.wording)
            by_meaning = TurnScore(value * trust if value > 0 else value, "meaning", back, similarity)
            both.append(max(by_words, by_meaning, courtesy))
        return both[0], both[1]

    def _repeat(
        self, message: Message, text: str, copied: CopiedWords, weight: float, found: TurnScore
    ) -> RepeatedTurn:
        """Return a repeated turn with the earlier turn that it repeats."""
        back = min(found.back, len(self._turns) - 1)
        if found.source == "words":
            kind = "template" if copied.changed or copied.new > SWAPPED * copied.words else "verbatim"
            span = quoted(text, copied.start, copied.length)[:_QUOTED]
            before = self._words.passage(copied.source, min(copied.length, _QUOTED))[:_QUOTED]
        else:
            kind, span, before = "semantic", text[:_QUOTED], self._quotes[-1 - min(back, len(self._quotes) - 1)]
        earlier = self._turns[-1 - back]
        similarity = min(1.0, max(0.0, found.similarity))
        return RepeatedTurn(
            message.turn, message.sender, found.value, weight, kind, back, earlier, span, before, similarity
        )

    def _add_call(self, message: Message, text: str) -> ObserverVerdict | None:
        """Add an action or a result. Return the verdict "waiting" if calls far apart have the same result."""
        spent = self._spend(message, len(text[:EMBEDDED_CHARACTERS].split()))
        self._silent.clear()
        if message.kind == ACTION:
            found = self._calls.add_action(text, self._who(message.sender), message.turn, message.created_at)
        else:
            found = self._calls.add_result(text, message.turn, message.created_at)
        if found is None:
            return None
        if found.times < 2:
            self._before_round = spent
        self._round = found if found.times >= ROUNDS else None
        if found.new:  # progress, whatever the messages beside it repeat
            for cumulative in (self._whole, *self._alone.values()):
                cumulative.lower(1.0, message.turn)
        if not found.waiting:
            return None
        evidence = {
            "kind": "action",
            "onset_turn": found.second,
            "span": found.text,
            "first_repeats_turn": found.first,
        }
        reason = f"waiting: the result at turn {message.turn} is the same as at turn {found.first}"
        return ObserverVerdict("waiting", "record", reason, evidence=evidence)

    def _verdict(self, turn: int, waiting: ObserverVerdict | None) -> ObserverVerdict:
        """Return the current status, with hysteresis."""
        strongest = max((self._whole, *self._alone.values()), key=lambda each: each.score)
        self.score = strongest.score
        counted = self._counted()
        if counted is not None:
            self.score = MAX_SCORE
        if self._alarm is None:
            if self.score <= self.warn_threshold or (counted is None and strongest.onset is None):
                return waiting or NOTHING
        elif self.score < RELEASE * self.threshold:
            return self._recovered(turn, strongest)
        evidence = counted or strongest.evidence(self._spent)
        self._keep_onset(evidence)
        evidence["score"] = round(self.score, 3)
        reason = describe(evidence, turn)
        if self._alarm is None and self.score <= self.threshold:
            return ObserverVerdict("warning", "record", reason, evidence=evidence)
        self._since = 0 if self._alarm is None else self._since + 1
        self._alarm = evidence
        due = self.action != NUDGE or self._since % self.cooldown == 0
        reason += f"; the last turn before it is {evidence['onset_turn'] - 1}"
        return ObserverVerdict("loop", self.action if due else "record", reason, evidence=evidence)

    def _keep_onset(self, evidence: dict[str, Any]) -> None:
        """Keep the onset of the current loop, whichever cumulative score is the strongest now."""
        before = self._spent - evidence["tokens_since_onset"]
        if self._alarm is None or evidence["onset_turn"] <= self._alarm["onset_turn"]:
            self._before_onset = before
            return
        evidence["tokens_since_onset"] += before - self._before_onset
        for name in ("onset_turn", "first_repeats_turn"):
            evidence[name] = self._alarm[name]

    def _recovered(self, turn: int, strongest: CumulativeScore) -> ObserverVerdict:
        evidence = {**(self._alarm or {}), "score": round(self.score, 3), "recovered_turn": strongest.left or turn}
        self._alarm = None
        for each in (self._whole, *self._alone.values()):
            each.reset()
        reason = f"recovered: from turn {evidence['recovered_turn']} on no turn repeats an earlier one"
        return ObserverVerdict("recovered", "record", reason, evidence=evidence)

    def _counted(self) -> dict[str, Any] | None:
        """Return the evidence of empty turns or of repeated calls, which are counted rather than weighed."""
        if len(self._silent) == SILENT:
            first = self._silent[0]
            return _evidence("silent", first, 0, 1, "", 0)
        if self._round is not None:
            found, tokens = self._round, self._spent - self._before_round
            return _evidence("action", found.second, found.first, found.period, found.text, tokens)
        return None

    def _who(self, sender: str) -> int:
        """Return the number of a speaker, by first appearance; very late speakers share the last one."""
        if sender not in self._speakers and len(self._speakers) < _SPEAKERS:
            self._speakers[sender] = len(self._speakers)
        return self._speakers.get(sender, _SPEAKERS - 1)

    def _spend(self, message: Message, size: int) -> int:
        """Add the tokens of a message; return those of the conversation before it."""
        before = self._spent
        tokens = message.usage.get("output_tokens")
        self._spent += tokens if isinstance(tokens, int) else round(TOKENS_PER_WORD * size)
        return before


def is_ignored(message: Message) -> bool:
    """Return whether the detector ignores a message: a bid, a combination, a nudge."""
    return message.kind in ASIDE or bool(message.metadata.get(NUDGE))


def embedded_text(message: Message) -> str:
    """Return the part of a message that is embedded, or an empty string."""
    text = message.content
    if not isinstance(text, str) or message.kind in KINDS or is_ignored(message) or not words(text)[0]:
        return ""
    return text[:EMBEDDED_CHARACTERS]


def _evidence(kind: str, onset: int, earlier: int, period: int, span: str, tokens: int) -> dict[str, Any]:
    """Return the entries of `CumulativeScore.evidence` for empty turns and repeated calls."""
    return {
        "kind": kind,
        "onset_turn": onset,
        "period": period,
        "span": span,
        "earlier_span": span,
        "speakers": [],
        "tokens_since_onset": tokens,
        "first_repeats_turn": earlier,
        "last_repeats_turn": earlier,
        "similarity": 1.0,
    }
