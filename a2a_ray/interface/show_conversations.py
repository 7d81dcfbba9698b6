"""Print conversations with their findings on a terminal, and write alarms for scorers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from a2a_ray.analysis.text.exact_repetition import repeated_spans
from a2a_ray.core.errors import ConfigurationError, StorageError, unknown
from a2a_ray.core.findings import NONE, NOT_APPLICABLE, Finding
from a2a_ray.report.chat import render_chat
from a2a_ray.report.finding_text import finding_text
from a2a_ray.report.results import Results

if TYPE_CHECKING:
    from rich.console import Console

LISTED_IDS = 20
"""An error about an unknown conversation lists at most this many ids."""


def show_conversations(results: Results, console: Console, conversation: str | None, limit: int) -> int:
    """Print one conversation, or the first `limit` (0: all), as chats. Return how many were printed.

    Raises ConfigurationError if there is no such conversation.
    """
    if conversation is not None and conversation not in results.ids:
        message = unknown("conversation", conversation, results.ids[:LISTED_IDS])
        raise ConfigurationError(f"{results.source}: {message}")
    ids = [conversation] if conversation is not None else results.ids[: limit or None]
    by_id: dict[str, list[Finding]] = {}
    for finding in results.findings(ids):
        by_id.setdefault(finding.conversation_id, []).append(finding)
    for transcript in results.transcripts(ids):
        findings = by_id.get(transcript.id, [])
        loop = next((f for f in findings if f.key[1:] == results.detector and f.looped), None)
        render_chat(
            transcript,
            console,
            spans=repeated_spans(transcript),
            onset=loop.onset_turn if loop else None,
            alarm=loop.alarm_turn if loop else None,
            findings=_finding_lines(results, findings),
        )
    return len(ids)


def write_alarms(results: Results, path: Path) -> None:
    """Write one line per conversation: its id, and the index, from 0, of the turn of its first alarm (or null).

    For a file, the index counts all its turns, including those that are not messages of an agent. Raises StorageError.
    """
    alarms = {id: loop.alarm_turn for id, loop in results.loops.items()}
    try:
        with path.open("w", encoding="utf-8") as file:
            for id in results.ids:
                alarm = _alarm_index(results, id, alarms.get(id))
                file.write(json.dumps({"id": id, "alarm": alarm}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; the alarms are not written") from None


def _finding_lines(results: Results, findings: Sequence[Finding]) -> list[str]:
    """Return one line per finding, then one line that names the analyzers that found nothing."""
    empty = [f for f in findings if f.status in (NONE, NOT_APPLICABLE)]
    lines = [f"{results.titles[f.key[1:]]}: {finding_text(f)}" for f in findings if f not in empty]
    if empty:
        names = ", ".join(dict.fromkeys(results.titles[f.key[1:]] for f in empty))
        lines.append(f"nothing found by {names}" if lines else f"nothing found: {names}")
    return lines


def _alarm_index(results: Results, id: str, turn: int | None) -> int | None:
    if turn is None or results.run is not None:
        return None if turn is None else turn - 1
    (transcript,) = results.transcripts([id])
    indices: Sequence[int] = [i for i, message in enumerate(transcript.turns) if message.turn == turn]
    return indices[0]
