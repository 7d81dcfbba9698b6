"""An observer with a judge: a language model that is asked only when the observer is suspicious."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any

from a2a_ray.analysis.judge.judge_answer import JudgeAnswer, clipped, read_answer
from a2a_ray.analysis.judge.judge_prompt import LEAST_CHARACTERS, Excerpt
from a2a_ray.analysis.judge.timed_agent import TimedAgent
from a2a_ray.core.contract_checks import check_part, shown
from a2a_ray.core.contracts import Agent, Observer
from a2a_ray.core.errors import ConfigurationError, PlacementError, StorageError
from a2a_ray.core.findings import LOOP, NONE, RECOVERED, WARNING, Finding
from a2a_ray.core.message import ASIDE, EMPTY, REVIEW, Message, checked_answer
from a2a_ray.core.verdict import ObserverVerdict

ANALYZER, VERSION = "judge", "1"
"""Name and version of the judge as an analyzer."""
KIND, UNDETERMINED = "no_progress", "undetermined"
"""Kind of the loops that a judge reports, and status of a finding without any usable answer."""
EVERY, TIMEOUT, CHARACTERS = 8, 60.0, 16_000
"""Defaults: turns between two questions, seconds for an answer, characters of the quoted turns."""


class JudgedObserver:
    """An observer whose suspicion a judge confirms or not; itself an observer.

        JudgedObserver(LoopDetector(action="stop"), OpenAIAgent("judge", "gpt-5-mini"))

    observer: reports "warning" or "loop" when it is suspicious, and has `findings`, such as LoopDetector. Its verdicts
        and findings are kept as they are.
    judge: any agent. It is asked whether the conversation has stopped making progress, and since which turn.
    every: the judge is asked at most once in this number of turns, and never without a suspicion.
    timeout: seconds for an answer, with the judge's own retries; None sets no limit.
    characters: of the newest turns that the judge sees, at least 1,000.
    about: what describes the judge in the settings of findings; JSON. By default its name.

    If the judge says that the conversation has stopped, the verdict has the status "loop" and requests the observer's
    `action`, unless the observer has reported that loop itself. "progress", "unreadable" and "failed" are the other
    statuses of its verdicts; they request nothing. `findings` adds those of the analyzer "judge".

    Raises ConfigurationError for settings outside these limits.
    """

    def __init__(
        self,
        observer: Observer,
        judge: Agent,
        *,
        every: int = EVERY,
        timeout: float | None = TIMEOUT,
        characters: int = CHARACTERS,
        about: Mapping[str, Any] = EMPTY,
    ) -> None:
        check_part("observer", observer, "observer")
        check_part("agent", judge, "judge")
        if not callable(getattr(observer, "findings", None)):
            raise ConfigurationError(f"observer: {shown(observer)} has no findings(); expected one, like LoopDetector")
        limits = (("every", every, 1), ("timeout", timeout, 0.001), ("characters", characters, LEAST_CHARACTERS))
        for name, value, least in limits:
            if value is not None and value < least:
                raise ConfigurationError(f"{name}: {value}; expected at least {least:,}")
        self.observer: Any = observer
        self.judge: Any = judge if timeout is None else TimedAgent(judge, timeout)
        self.settings = {"every": every, "characters": characters, "judge": dict(about) or judge.name}
        self.answers: list[JudgeAnswer] = []
        """All answers so far, the unusable ones included."""
        self._every, self._excerpt = every, Excerpt(characters)
        self._turn = self._seq = self._asked = 0
        self._suspicion: ObserverVerdict | None = None  # of the newest message
        self._stops: list[dict[str, Any]] = []  # fields of the judge's findings

    @property
    def action(self) -> str:
        """The action of the observer."""
        return str(getattr(self.observer, "action", "record"))

    def update(self, message: Message) -> ObserverVerdict:
        """Return the observer's verdict, or that of a judge's answer."""
        self._seq = message.seq
        verdict: ObserverVerdict = self.observer.update(message)
        if message.kind == REVIEW and message.sender == self.judge.name:
            return self.take(message)
        if message.kind not in ASIDE:
            self._turn = message.turn
            self._excerpt.add(message)
            self._suspicion = verdict if verdict.status in (WARNING, LOOP) else None
        return verdict

    def review(self, request: Message) -> Awaitable[Message] | None:
        """Return the judge's answer to `request`, to await; None if there is nothing to ask."""
        if self._suspicion is None or (self._asked and self._turn - self._asked < self._every):
            return None
        return self._ask(replace(request, content=self._excerpt.prompt()))

    def findings(self, conversation_id: str) -> list[Finding]:
        """Return the observer's findings, then the judge's: one for each time that the conversation stopped.

        If it never did, one says so, with the status "undetermined" if no answer was usable. The evidence of the first
        has all `answers`.
        """
        found: list[dict[str, Any]] = self._stops or [self._no_stop()]
        about: dict[str, Any] = {"conversation_id": conversation_id, "analyzer": ANALYZER, "analyzer_version": VERSION}
        about |= {"settings": self.settings, "through_seq": self._seq}
        own = [Finding(**about, **fields, number=number) for number, fields in enumerate(found, 1)]
        own[0] = replace(own[0], evidence={"answers": [answer.to_dict() for answer in self.answers]})
        return [*self.observer.findings(conversation_id), *own]

    async def _ask(self, request: Message) -> Message:
        """Return the answer; an error of the judge becomes an empty one with `metadata["error"]`."""
        try:
            return checked_answer(await self.judge.step(request), request, self.judge.name)
        except (StorageError, PlacementError):  # of the run, not of the judge
            raise
        except (Exception, SystemExit) as error:
            sentence = str(error) if str(error) else type(error).__name__
            return request.reply("", self.judge.name, metadata={"error": clipped(sentence)})

    def take(self, record: Message) -> ObserverVerdict:
        """Keep an answer of the judge, and return the verdict on it; `update` does so for records of the judge."""
        self._asked = self._turn
        answer = read_answer(record, self._turn)
        self.answers.append(answer)
        if answer.stopped is None:
            return ObserverVerdict(answer.problem, reason=f"the judge's answer: {answer.reason}")
        if not answer.stopped:
            if self._stops and self._stops[-1]["status"] == LOOP:
                self._stops[-1] |= {"status": RECOVERED, "recovered_turn": self._turn}
            return ObserverVerdict("progress", reason=f"the judge sees progress: {answer.reason}")
        return self._stopped(answer, self._suspicion or ObserverVerdict())

    def _stopped(self, answer: JudgeAnswer, suspicion: ObserverVerdict) -> ObserverVerdict:
        """Return the verdict on an answer that the conversation has stopped; its evidence extends the suspicion's."""
        onset = suspicion.evidence.get("onset_turn") if answer.since_turn is None else answer.since_turn
        if type(onset) is not int:
            onset = answer.turn
        fields = {"kind": KIND, "onset_turn": onset}
        if not self._stops or self._stops[-1]["status"] == RECOVERED:
            self._stops.append({**fields, "status": LOOP, "alarm_turn": answer.turn, "reason": answer.reason})
        action = "record" if suspicion.status == LOOP else self.action
        reason = f"the judge sees no progress since turn {onset}: {answer.reason}"
        return ObserverVerdict(LOOP, action, reason, evidence={**suspicion.evidence, **fields})

    def _no_stop(self) -> dict[str, Any]:
        """Return the fields of the finding on a conversation that has not stopped, as far as the judge knows."""
        if not self.answers:
            return {"status": NONE, "reason": "the judge was not asked"}
        bad = [answer for answer in self.answers if answer.stopped is None]
        reason = f"the judge saw progress {len(self.answers) - len(bad)} times"
        if bad:
            reason += f"; {len(bad)} unusable answers, the last one: {bad[-1].problem}: {bad[-1].reason}"
        return {"status": UNDETERMINED if len(bad) == len(self.answers) else NONE, "reason": reason}
