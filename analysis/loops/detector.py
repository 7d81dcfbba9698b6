"""The streaming loop detector: one object watches one conversation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from a2a_ray.analysis.loops.conversation_kind import (
    AUTO,
    COPIES,
    EMPTY_ACTS,
    FAMILIES,
    MEANING,
    ROUNDS,
    SILENT,
    KindDetector,
)
from a2a_ray.analysis.loops.copies import CopiedTurns
from a2a_ray.analysis.loops.detector_findings import FindingCollector
from a2a_ray.analysis.loops.empty_acts import EmptyActs
from a2a_ray.analysis.loops.meaning import EMBEDDED_CHARACTERS, RecurringMeaning
from a2a_ray.analysis.loops.repeated_rounds import ACTION, KINDS, Call, RepeatedRounds
from a2a_ray.analysis.loops.repetition_sum import MAX_SCORE, RepeatedTurn, RepetitionSum, describe
from a2a_ray.analysis.loops.similarity_scale import load_shared, resolve_embedder
from a2a_ray.analysis.loops.tokenize import words
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import ASIDE, NUDGE, Message
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

ALARM = 1.0
"""The default threshold: the alarm of each family, as its own module sets it."""

EMPTY_TURNS = 2.99
"""More empty turns in a row than this are a loop."""

WARNING, RELEASE = 0.6, 0.5
"""Shares of the threshold: above the first the detector warns, below the second it withdraws an alarm."""

TOKENS_PER_WORD = 4 / 3
"""Estimate for a message without a token count."""


class LoopDetector:
    """Observer that reports after every message whether the conversation repeats itself.

    embedder: None or "none" for no model. "default", another name or folder (see `embedding.load_embedder`), or
        an Embedder, to find repetition in other words too, where that counts: in self_talk. The model is loaded with
        the first conversation of that kind, once per process.
    threshold: for `score`; above it the status becomes "loop". By default 1, the alarm of each family.
    warn_threshold: the same for "warning"; by default 0.6 of the threshold.
    action: the action that a verdict of a loop requests: "record", "stop", or "nudge". A nudge is requested by the
        first verdict of a loop, and then every `cooldown` turns while the loop lasts.
    conversation_kind: "tools", "chat", "self_talk" or "human", which says what families of loops count (see
        `conversation_kind.FAMILIES`). "auto" detects it from the first messages.

    score: of the newest turn, 0 to MAX_SCORE: the largest over the families of loops, each in units of its own alarm.
        It depends on the messages and the embedder alone: a conversation ever raises an alarm exactly if its largest
        score is above the threshold.

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
        conversation_kind: str = AUTO,
    ) -> None:
        self._embedder = resolve_embedder(embedder)
        if self._embedder is not None:
            load_shared(self._embedder)  # reports a missing model now; the weights are loaded with the first text
        threshold = ALARM if threshold is None else threshold
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
        if conversation_kind not in (AUTO, *FAMILIES):
            raise ConfigurationError(
                f"conversation_kind: {conversation_kind!r}; expected {AUTO!r} or one of {', '.join(FAMILIES)}"
            )
        self.threshold, self.warn_threshold, self.action, self.cooldown = threshold, warn_threshold, action, cooldown
        self.score = 0.0
        self._copies, self._rounds, self._acts = CopiedTurns(), RepeatedRounds(), EmptyActs()
        self._given_kind, self._kind = conversation_kind, KindDetector(conversation_kind)
        self._meaning = RecurringMeaning() if self._embedder is not None else None
        self._unread: list[tuple[Message, int]] = []  # until the kind is decided: for `_meaning`, with tokens before
        self._silent = RepetitionSum(EMPTY_TURNS)
        self._spent = 0  # tokens so far
        self._alarm: dict[str, Any] | None = None  # evidence of the current loop
        self._since = 0  # turns since its first verdict
        self._before_onset = 0  # tokens before the onset of that loop
        self._log = FindingCollector()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the findings; JSON."""
        found: dict[str, Any] = {"threshold": self.threshold, "warn_threshold": self.warn_threshold}
        if self._given_kind != AUTO:
            found["conversation_kind"] = self._given_kind
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
            waiting = self._add_round(message, text)
        else:
            self._add_text(message, text)
        return self._verdict(message.turn, waiting)

    @property
    def conversation_kind(self) -> str:
        """The kind of this conversation, as far as it is known."""
        return self._kind.kind

    @property
    def family_scores(self) -> dict[str, float]:
        """The score after the newest turn of each family that counts in this kind of conversation."""
        return {name: score for name, (score, _) in self._scores().items()}

    def _scores(self) -> dict[str, tuple[float, RepetitionSum]]:
        """Return the score and the sum of each family that counts."""
        sums = {COPIES: self._copies.sum, ROUNDS: self._rounds.sum, EMPTY_ACTS: self._acts.sum, SILENT: self._silent}
        if self._meaning is not None:
            sums[MEANING] = self._meaning.sum
        alarms = FAMILIES[self.conversation_kind]
        return {name: (each.score / alarms[name], each) for name, each in sums.items() if name in alarms}

    def _add_text(self, message: Message, text: str) -> None:
        """Add a message to the families that read text."""
        found, turn, sender = words(text), message.turn, message.sender
        spent = self._spend(message, len(found))
        if not found:
            self._silent.add(1.0, RepeatedTurn(turn, sender, "silent", 0, "", "", 1.0), spent)
            return
        self._silent.reset()
        self._kind.add_text(message, text)
        self._copies.add(turn, sender, text, found, spent)
        self._acts.add(turn, sender, text, spent)
        if self._meaning is not None:
            self._unread.append((message, spent))
            if self._kind.decided:
                self._read_meaning(self._meaning)

    def _read_meaning(self, meaning: RecurringMeaning) -> None:
        """Embed the messages not read yet, if meaning counts in this kind of conversation."""
        unread, self._unread = self._unread, []
        if MEANING not in FAMILIES[self.conversation_kind]:
            return
        embedder = load_shared(self._embedder)
        for message, spent in unread:
            text = str(message.content)
            meaning.add(message.turn, message.sender, text, words(text), spent, embedder)

    def _add_round(self, message: Message, text: str) -> ObserverVerdict | None:
        """Add an action or a result. Return the verdict "waiting" if calls far apart have the same result."""
        spent = self._spend(message, len(text[:EMBEDDED_CHARACTERS].split()))
        self._silent.reset()
        self._kind.add_call()
        call_id = str(message.metadata.get("call_id", ""))
        if message.kind == ACTION:
            self._rounds.add_call(Call(message.turn, message.sender, text, message.created_at, call_id), spent)
        else:
            self._rounds.add_result(text, message.turn, message.created_at, call_id, spent)
        if self._rounds.waiting is None:
            return None
        turn, earlier, span = self._rounds.waiting
        evidence = {"kind": "action", "onset_turn": turn, "span": span, "first_repeats_turn": earlier}
        reason = f"waiting: the call at turn {turn} has the same result as that at turn {earlier}"
        return ObserverVerdict("waiting", "record", reason, evidence=evidence)

    def _verdict(self, turn: int, waiting: ObserverVerdict | None) -> ObserverVerdict:
        """Return the current status, with hysteresis."""
        self.score, strongest = max(self._scores().values(), key=lambda each: each[0])
        if self._alarm is None:
            if self.score <= self.warn_threshold or strongest.onset is None:
                return waiting or NOTHING
        elif self.score < RELEASE * self.threshold:
            return self._recovered(turn, strongest)
        evidence = strongest.evidence(self._spent)
        self._keep_onset(evidence)
        evidence |= {"score": round(self.score, 3), "conversation_kind": self.conversation_kind}
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

    def _recovered(self, turn: int, strongest: RepetitionSum) -> ObserverVerdict:
        evidence = {**(self._alarm or {}), "score": round(self.score, 3), "recovered_turn": strongest.left or turn}
        self._alarm = None
        for _, each in self._scores().values():
            each.reset()
        self._acts.turns.reset()
        self._acts.words.reset()
        reason = f"recovered: from turn {evidence['recovered_turn']} on no turn repeats an earlier one"
        return ObserverVerdict("recovered", "record", reason, evidence=evidence)

    def _spend(self, message: Message, size: int) -> int:
        """Add the tokens of a message; return those of the conversation before it."""
        before = self._spent
        tokens = message.usage.get("output_tokens")
        self._spent += tokens if isinstance(tokens, int) else round(TOKENS_PER_WORD * size)
        return before


def is_ignored(message: Message) -> bool:
    """Return whether the detector ignores a message: a bid, a combination, a nudge."""
    return message.kind in ASIDE or bool(message.metadata.get(NUDGE))


def kind_of(messages: Iterable[Message]) -> str:
    """Return the kind that the detector decides on for a whole conversation."""
    found = KindDetector()
    for message in messages:
        if isinstance(message.content, str) and not is_ignored(message):
            if message.kind in KINDS:
                found.add_call()
            elif words(message.content):
                found.add_text(message, message.content)
    return found.kind


def embedded_text(message: Message) -> str:
    """Return the part of a message that is embedded, or an empty string."""
    text = message.content
    if not isinstance(text, str) or message.kind in KINDS or is_ignored(message) or not words(text):
        return ""
    return text[:EMBEDDED_CHARACTERS]
