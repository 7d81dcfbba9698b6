"""Ask a judge about a file of transcripts, for `a2a-ray detect --judge`."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from a2a_ray.analysis.judge.judge_transcripts import judge_transcripts
from a2a_ray.analysis.judge.judged_observer import ANALYZER, JudgedObserver
from a2a_ray.analysis.judge.timed_agent import TimedAgent
from a2a_ray.analysis.loops import LoopDetector
from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.experiment.judge_spec import JudgeSpec
from a2a_ray.experiment.secrets import refuse_keys
from a2a_ray.report.analyze_source import is_transcript_file
from a2a_ray.report.results import Results

AT_ONCE = 16
"""Transcripts that are judged at the same time if the judge's step is asynchronous."""


def load_judge(path: Path, source: str) -> JudgeSpec:
    """Return the judge that a YAML file describes, with the keys of `judge:`.

    source: what it will judge. Raises ConfigurationError, also unless that is a file of transcripts.
    """
    if not is_transcript_file(source):
        raise ConfigurationError(
            f"--judge: {source} is not a file of transcripts. To judge a run, first write one: a2a-ray export {source}"
        )
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; expected a YAML file with a judge") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not YAML: {getattr(error, 'problem', None) or error}") from None
    refuse_keys(value, str(path))
    return JudgeSpec.parse(value, str(path))


def add_judge(results: Results, judge: JudgeSpec) -> Counter[str]:
    """Ask the judge about the conversations of a file, and add its findings to the results.

    Return the sums of what its answers used, with "answers" for their number. Raises ConfigurationError for a judge
    that cannot be built, and without a key.
    """
    agent = judge.build("judge")
    agent_traits(agent).check()
    agent_traits(agent).setup()
    timed, embedder = TimedAgent(agent, judge.timeout), results.embedder

    def watching() -> JudgedObserver:
        settings = results.settings
        detector = LoopDetector(embedder, settings.threshold, conversation_kind=settings.conversation_kind)
        return judge.watch(detector, timed, timed=True)

    transcripts = list(results.transcripts())
    at_once = AT_ONCE if inspect.iscoroutinefunction(agent.step) else 1
    used: Counter[str] = Counter()
    for transcript, judgement in zip(
        transcripts, asyncio.run(judge_transcripts(transcripts, watching, at_once)), strict=True
    ):
        results.add_findings(transcript.id, [f for f in judgement.findings if f.analyzer == ANALYZER])
        used["answers"] += len(judgement.answers)
        for answer in judgement.answers:
            used.update({name: value for name, value in answer.usage.items() if _is_number(value)})
    return used


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
