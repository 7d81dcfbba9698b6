"""Conversations of an analysis on a terminal, and alarms for scorers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from a2a_ray.analysis.text.exact_repetition import repeated_spans
from a2a_ray.core.errors import StorageError
from a2a_ray.core.findings import NONE, NOT_APPLICABLE, Finding
from a2a_ray.report.chat import render_chat
from a2a_ray.report.finding_text import described
from a2a_ray.report.results import Results, check_conversation

if TYPE_CHECKING:
    from rich.console import Console


def show_conversations(results: Results, console: Console, conversation: str | None, limit: int) -> int:
    """Prints one conversation, or the first `limit` (0:

    all), as chats; gives their number. Raises ConfigurationError.
    """
    if conversation is not None:
        check_conversation(results, conversation)
    ids = [conversation] if conversation is not None else results.ids[: limit or None]
    found: dict[str, list[Finding]] = {}
    for finding in results.findings(ids):
        found.setdefault(finding.conversation_id, []).append(finding)
    for transcript in results.transcripts(ids):
        mine = found.get(transcript.id, [])
        loop = next((f for f in mine if f.key[1:] == results.detector and f.looped), None)
        render_chat(
            transcript,
            console,
            spans=repeated_spans(transcript),
            onset=loop.onset_turn if loop else None,
            alarm=loop.alarm_turn if loop else None,
            findings=lines_of(results, mine),
        )
    return len(ids)


def lines_of(results: Results, findings: Sequence[Finding]) -> list[str]:
    """What was found in one conversation, a line each; then who found nothing."""
    silent = [f for f in findings if f.status in (NONE, NOT_APPLICABLE)]
    lines = [f"{results.titles[f.key[1:]]}: {described(f)}" for f in findings if f not in silent]
    if silent:
        names = ", ".join(dict.fromkeys(results.titles[f.key[1:]] for f in silent))
        lines.append(f"nothing found by {names}" if lines else f"nothing found: {names}")
    return lines


def write_alarms(results: Results, path: Path) -> None:
    """One line a conversation: its id, and the index, from 0, of the turn of its first alarm. Raises StorageError.

    Of a file the index is among all of its turns, also those that nobody said.
    """
    alarms = {id: loop.alarm_turn for id, loop in results.loops.items()}
    try:
        with path.open("w", encoding="utf-8") as file:
            for id in results.ids:
                turn = alarms.get(id)
                file.write(json.dumps({"id": id, "alarm": _index(results, id, turn)}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}; the alarms are not written") from None


def _index(results: Results, id: str, turn: int | None) -> int | None:
    if turn is None or results.run is not None:
        return None if turn is None else turn - 1
    (transcript,) = results.transcripts([id])
    places: Sequence[int] = [place for place, message in enumerate(transcript.turns) if message.turn == turn]
    return places[0]
