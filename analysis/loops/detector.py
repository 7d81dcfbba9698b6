"""The streaming detector: one object watches one conversation."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Any, Literal, NamedTuple

from a2a_ray.analysis.loops.actions import ACTION, KINDS, ROUNDS, RepeatedCalls, Rounds
from a2a_ray.analysis.loops.evidence import MOST, Repeat, RepeatRun, sentence
from a2a_ray.analysis.loops.lexical import Copied, Recall
from a2a_ray.analysis.loops.log import Log
from a2a_ray.analysis.loops.semantic import REACH, Meaning, loaded, named, scale_of
from a2a_ray.analysis.loops.signs import READ, answered, of_courtesy, of_likeness, of_words, shrinks
from a2a_ray.analysis.loops.words import quoted, words
from a2a_ray.analysis.text.embedding import Embedder
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import ASIDE, NUDGE, Message
from a2a_ray.core.verdict import NOTHING, ObserverVerdict

SHORT, ALONE = 2, 12
"""A turn of so many words weighs half of a long one, for the whole talk and for a speaker alone: whoever asks puts
short questions again, and the news is in the answers."""

NEWS, ANSWERED = 0.6, 0.5
"""From this novelty on, a turn of somebody else takes away from what one speaker repeats: so much, if all is new."""

SWAPPED = 0.12
"""Share of new words above which what is copied is called a template."""

SILENT = 3
"""So many empty turns in a row are a loop."""

WARNING, RELEASE = 0.6, 0.5
"""Above the one share of the threshold a warning is given, below the other an alarm is withdrawn."""

TOKENS_PER_WORD = 4 / 3
"""Of a message that does not say how many tokens it took."""

EMBEDDED = 4000
"""So many characters of a turn are embedded; the default model reads about 1 200."""

_SPEAKERS = 64
_QUOTED = 200


class Found(NamedTuple):
    """How far a turn speaks for a loop (-1 to 1), by its words, its meaning or a courtesy; how many turns back it
    points."""

    sign: float
    by: str
    back: int
    similarity: float


class LoopDetector:
    """Observer: says after every message whether the conversation repeats itself.

    embedder: None or "none" for the words alone; "default", another name or folder (see `embedding.load_embedder`), or
        an Embedder, to find what is said again in other words too. A name is loaded once in a process.
    threshold: on `score`; above it the status becomes "loop". By default the one of `calibration.shipped`.
    warn_threshold: the same for "warning"; by default 0.6 of the threshold.
    action: what the verdicts of a loop ask for: "record", "stop", or "nudge" (on the first one, and again whenever the
        loop has gone on for `cooldown` turns more).

    score: of the newest turn, 0 to MOST, in turns' worth of repetition in a row: the largest over all kinds of loop. It
        depends on the messages and the embedder alone: a conversation ever alarms exactly if its largest score is above
        the threshold.

    An alarm is withdrawn ("recovered", once) when the score has fallen below half of the threshold. Bids, combinations,
    vectors and nudges (kind "nudge", or `metadata["nudge"]`) are passed over. The state pickles, with the embedder by
    name. Raises ConfigurationError for thresholds that no score can be above, or that all are.
    """

    def __init__(
        self,
        embedder: str | Embedder | None = None,
        threshold: float | None = None,
        warn_threshold: float | None = None,
        action: Literal["record", "nudge", "stop"] = "record",
        cooldown: int = 8,
    ) -> None:
        self._embedder = named(embedder)
        if self._embedder is not None:
            loaded(self._embedder)  # what is nowhere is said now; the weights are loaded with the first text
        if threshold is None:
            from a2a_ray.analysis.loops.calibration import shipped

            threshold = shipped("lexical" if self._embedder is None else "semantic").threshold
        warn_threshold = WARNING * threshold if warn_threshold is None else warn_threshold
        if not 0 < warn_threshold <= threshold < MOST:
            raise ConfigurationError(
                f"warn_threshold: {warn_threshold}, threshold: {threshold};"
                f" expected 0 < warn_threshold <= threshold < {MOST:g}, the largest score"
            )
        if action not in ("record", "nudge", "stop"):
            raise ConfigurationError(f"action: {action!r}; expected 'record', 'nudge' or 'stop'")
        if cooldown < 1:
            raise ConfigurationError(f"cooldown: {cooldown}; expected at least 1")
        self.threshold, self.warn_threshold, self.action, self.cooldown = threshold, warn_threshold, action, cooldown
        self.score = 0.0
        self._recall = Recall()
        self._meaning = Meaning()
        self._speakers: dict[str, int] = {}
        self._talk, self._alone = RepeatRun(), dict[int, RepeatRun]()  # of the whole talk, and of each speaker alone
        self._starts: list[int] = []  # where turns begin, in words of the talk, as far back as `_recall` reaches
        self._turns: list[int] = []  # and their numbers
        self._quotes: deque[str] = deque(maxlen=REACH + 1)
        self._calls = RepeatedCalls()
        self._round: Rounds | None = None  # the newest call, where it goes round
        self._silent: list[int] = []  # the empty turns at the end, the first of them at most SILENT
        self._spent = 0  # tokens so far
        self._before_round = 0  # tokens before the call that went round first
        self._alarm: dict[str, Any] | None = None  # evidence of the loop that goes on
        self._since = 0  # turns since its first verdict
        self._before_onset = 0  # tokens before the onset of that loop
        self._log = Log()

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what it finds; JSON."""
        found: dict[str, Any] = {"threshold": self.threshold, "warn_threshold": self.warn_threshold}
        return found if self._embedder is None else found | {"embedder": loaded(self._embedder).identity}

    def findings(self, conversation_id: str) -> list[Finding]:
        """The loops in what it has seen, in order, at least one finding.

        The first finding's evidence has `scores`: the score after each message, turn 1 first.
        """
        return self._log.findings(conversation_id, self.settings)

    def update(self, message: Message) -> ObserverVerdict:
        """The verdict after this message."""
        verdict = self._update(message)
        self._log.add(message, verdict, self.score)
        return verdict

    def _update(self, message: Message) -> ObserverVerdict:
        text = message.content
        if not isinstance(text, str) or passed_over(message):
            return NOTHING
        waiting = None
        if message.kind in KINDS:
            waiting = self._call(message, text)
        else:
            self._say(message, text)
        return self._verdict(message.turn, waiting)

    def _say(self, message: Message, text: str) -> None:
        """Takes in what somebody said."""
        found, numbers = words(text)
        spent = self._spend(message, len(found))
        if not found:
            if len(self._silent) < SILENT:
                self._silent.append(message.turn)
            return
        self._silent.clear()
        who = self._who(message.sender)
        alone = self._alone.get(who)
        if alone is None:
            alone = self._alone[who] = RepeatRun()
        self._starts.append(self._recall.length)
        self._turns.append(message.turn)
        self._quotes.append(text[:_QUOTED])
        copied = self._recall.read(found, numbers)
        back = len(self._starts) - bisect_right(self._starts, copied.source) if copied.length else 0
        by_words = Found(of_words(copied), "words", back, 1 - copied.novelty)
        signs = (by_words, by_words)
        if self._embedder is not None:
            signs = self._compare(text, found, who, by_words)
        for run, one, short in zip((self._talk, alone), signs, (SHORT, ALONE), strict=True):
            weight = copied.words / (copied.words + short)
            if one.sign > 0 and shrinks(copied):
                continue
            if one.sign > 0:
                run.add(self._repeat(message, text, copied, weight, one), spent)
            else:
                run.lose(-one.sign * weight, message.turn)
        if copied.novelty > NEWS:
            weight = copied.words / (copied.words + SHORT)
            for other in self._alone.values():
                if other is not alone:
                    other.lose(ANSWERED * weight * (copied.novelty - NEWS) / (1 - NEWS), message.turn)
        if self._starts[0] < self._recall.first:
            gone = bisect_right(self._starts, self._recall.first)
            del self._starts[:gone], self._turns[:gone]

    def _compare(self, text: str, said: list[str], who: int, by_words: Found) -> tuple[Found, Found]:
        """The stronger sign, of the words or of the meaning: for the whole talk, and for the speaker alone."""
        embedder = loaded(self._embedder)
        scale = scale_of(embedder)
        if not scale.reads(text):
            self._meaning.skip(said, who, scale.courtesies.shape[1])
            return by_words, by_words
        vector = embedder.vector(text[:EMBEDDED])
        like = self._meaning.read(vector, said, who, scale)
        alone = self._alone[who]
        # Who asks again after an answer that brought something asks a new question. What is not read is not known.
        trust = (1 - alone.answered) * min(1.0, READ / len(text))
        alone.answered = 0.0
        for other in self._alone.values():
            if other is not alone:
                other.answered = max(other.answered, answered(like.fresh))
        courtesy = Found(of_courtesy(like.courtesy), "courtesy", 1, like.courtesy)
        both = []
        for run, value, news, back in (
            (self._talk, like.talk, like.news, like.period),
            (alone, like.own, like.own_news, like.own_period),
        ):
            run.hear(1 - by_words.similarity, len(said) / (len(said) + SHORT))
            sign = of_likeness(value, news, run.wording)
            both.append(max(by_words, Found(sign * trust if sign > 0 else sign, "meaning", back, value), courtesy))
        return both[0], both[1]

    def _repeat(self, message: Message, text: str, copied: Copied, weight: float, found: Found) -> Repeat:
        """One turn that repeats, with what it repeats."""
        back = min(found.back, len(self._turns) - 1)
        if found.by == "words":
            kind = "template" if copied.changed or copied.new > SWAPPED * copied.words else "verbatim"
            span = quoted(text, copied.start, copied.length)[:_QUOTED]
            before = self._recall.passage(copied.source, min(copied.length, _QUOTED))[:_QUOTED]
        else:
            kind, span, before = "semantic", text[:_QUOTED], self._quotes[-1 - min(back, len(self._quotes) - 1)]
        earlier = self._turns[-1 - back]
        similarity = min(1.0, max(0.0, found.similarity))
        return Repeat(message.turn, message.sender, found.sign, weight, kind, back, earlier, span, before, similarity)

    def _call(self, message: Message, text: str) -> ObserverVerdict | None:
        """Takes an action or a result in; gives the verdict "waiting" where nothing has changed since a while ago."""
        spent = self._spend(message, len(text[:EMBEDDED].split()))
        self._silent.clear()
        if message.kind == ACTION:
            found = self._calls.act(text, self._who(message.sender), message.turn, message.created_at)
        else:
            found = self._calls.result(text, message.turn, message.created_at)
        if found is None:
            return None
        if found.times < 2:
            self._before_round = spent
        self._round = found if found.times >= ROUNDS else None
        if found.new:  # progress, whatever is said beside it
            for run in (self._talk, *self._alone.values()):
                run.lose(1.0, message.turn)
        if not found.waiting:
            return None
        evidence = {
            "kind": "action",
            "onset_turn": found.second,
            "span": found.text,
            "first_repeats_turn": found.first,
        }
        reason = f"waiting: the result at turn {message.turn} is still the one of turn {found.first}"
        return ObserverVerdict("waiting", "record", reason, evidence=evidence)

    def _verdict(self, turn: int, waiting: ObserverVerdict | None) -> ObserverVerdict:
        """The status now, with hysteresis."""
        run = max((self._talk, *self._alone.values()), key=lambda each: each.score)
        self.score = run.score
        counted = self._counted()
        if counted is not None:
            self.score = MOST
        if self._alarm is None:
            if self.score <= self.warn_threshold or (counted is None and run.onset is None):
                return waiting or NOTHING
        elif self.score < RELEASE * self.threshold:
            return self._recovered(turn, run)
        evidence = counted or run.evidence(self._spent)
        self._since_onset(evidence)
        evidence["score"] = round(self.score, 3)
        reason = sentence(evidence, turn)
        if self._alarm is None and self.score <= self.threshold:
            return ObserverVerdict("warning", "record", reason, evidence=evidence)
        self._since = 0 if self._alarm is None else self._since + 1
        self._alarm = evidence
        due = self.action != NUDGE or self._since % self.cooldown == 0
        reason += f"; the last turn before it is {evidence['onset_turn'] - 1}"
        return ObserverVerdict("loop", self.action if due else "record", reason, evidence=evidence)

    def _since_onset(self, evidence: dict[str, Any]) -> None:
        """A loop that goes on began where it was first seen, whichever part of it is the strongest now."""
        before = self._spent - evidence["tokens_since_onset"]
        if self._alarm is None or evidence["onset_turn"] <= self._alarm["onset_turn"]:
            self._before_onset = before
            return
        evidence["tokens_since_onset"] += before - self._before_onset
        for name in ("onset_turn", "first_repeats_turn"):
            evidence[name] = self._alarm[name]

    def _recovered(self, turn: int, run: RepeatRun) -> ObserverVerdict:
        evidence = {**(self._alarm or {}), "score": round(self.score, 3), "recovered_turn": run.left or turn}
        self._alarm = None
        for each in (self._talk, *self._alone.values()):
            each.forget()
        reason = f"recovered: nothing repeats what was said before from turn {evidence['recovered_turn']} on"
        return ObserverVerdict("recovered", "record", reason, evidence=evidence)

    def _counted(self) -> dict[str, Any] | None:
        """Evidence of empty turns, or of calls that go round: these are counted, not weighed."""
        if len(self._silent) == SILENT:
            first = self._silent[0]
            return _evidence("silent", first, 0, 1, "", 0)
        if self._round is not None:
            found, tokens = self._round, self._spent - self._before_round
            return _evidence("action", found.second, found.first, found.period, found.text, tokens)
        return None

    def _who(self, sender: str) -> int:
        """The number of a speaker, by first appearance; very late ones share the last."""
        if sender not in self._speakers and len(self._speakers) < _SPEAKERS:
            self._speakers[sender] = len(self._speakers)
        return self._speakers.get(sender, _SPEAKERS - 1)

    def _spend(self, message: Message, size: int) -> int:
        """Adds the tokens of a message; gives those of the talk before it."""
        before = self._spent
        tokens = message.usage.get("output_tokens")
        self._spent += tokens if isinstance(tokens, int) else round(TOKENS_PER_WORD * size)
        return before


def passed_over(message: Message) -> bool:
    """Whether a message is none that somebody said or did: a bid, a combination, a nudge."""
    return message.kind in ASIDE or bool(message.metadata.get(NUDGE))


def embedded_text(message: Message) -> str:
    """What is embedded of a message; empty where nothing is."""
    text = message.content
    if not isinstance(text, str) or message.kind in KINDS or passed_over(message) or not words(text)[0]:
        return ""
    return text[:EMBEDDED]


def _evidence(kind: str, onset: int, earlier: int, period: int, span: str, tokens: int) -> dict[str, Any]:
    """The same entries as `RepeatRun.evidence`, of what is counted."""
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
