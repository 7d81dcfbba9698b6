"""The exchange format: one conversation per line of JSON, for transcripts of any tool.

    {"id": "c1", "turns": [{"speaker": "ann", "text": "Hello."}, {"speaker": "bob", "text": "Hi."}]}

Optional: `opening` (text) or `opening_vector` (numbers), the first speaker's context. Per turn: `kind` (message,
action, result), `time` (seconds since the epoch), `tokens`. Unknown keys are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.transcript import Transcript


def read_jsonl(path: str | Path) -> tuple[list[Transcript], list[str]]:
    """Return the readable conversations of a file, and one sentence with the line number for each unreadable line.

    Raises ConfigurationError if the file does not exist or has no readable conversation.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror or error}; expected a JSONL file of conversations"
        ) from error
    transcripts: list[Transcript] = []
    problems: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            transcript = Transcript.from_exchange(json.loads(line.decode("utf-8")), id=f"line-{number}")
        except (
            ValueError,
            RecursionError,
        ) as error:  # ConfigurationError, broken JSON and broken UTF-8 are all ValueErrors
            problems.append(f"{path}, line {number}: {_reason(error)}")
            continue
        if transcript.id in seen:
            problems.append(
                f"{path}, line {number}: id {transcript.id!r} occurs twice; read as {transcript.id}#{number}"
            )
            transcript.id = f"{transcript.id}#{number}"
        seen.add(transcript.id)
        transcripts.append(transcript)
    if not transcripts:
        raise ConfigurationError(
            f"{path}: no conversation in it ({problems[0].removeprefix(f'{path}, ') if problems else 'it is empty'});"
            ' expected one JSON object a line: {"id": "...", "turns": [{"speaker": "...", "text": "..."}]}'
        )
    return transcripts, problems


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON, or cut off: {error.msg} (column {error.colno})"
    return str(error)


def write_jsonl(transcripts: Iterable[Transcript], path: str | Path) -> int:
    """Write one line per conversation and return their number.

    Raises ConfigurationError if the file cannot be written.
    """
    count = 0
    try:
        with Path(path).open("w", encoding="utf-8") as file:
            for transcript in transcripts:
                file.write(json.dumps(transcript.to_exchange(), ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; choose another file with -o") from error
    return count
