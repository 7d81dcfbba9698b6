"""Write the report of a run as one self-contained HTML page, readable on a phone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from a2a_ray.core.message import Message
from a2a_ray.report import figures
from a2a_ray.report.chat import ending, is_blank, segments, speaker_places, vector_text
from a2a_ray.report.finding_text import finding_text
from a2a_ray.report.page import render_page, write_page
from a2a_ray.report.plotly_traces import Figure
from a2a_ray.report.report_data import ConversationItem, ReportData

MOST_LOOPED = 200
"""Looped conversations that are shown as chats, at most."""
MOST_OTHERS = 50
"""Other conversations that are shown, drawn at random, and failed ones that are shown, at most."""
TEXT_LIMIT = 20_000
"""Characters of a message that are shown."""
PAGE_LIMIT = 2_500_000
"""Bytes of conversations on the page. A phone must open it, and plotly takes another 4.8 MB."""
BUBBLE_BYTES = 220
"""Bytes of HTML around each message, about."""
LISTED_FAILURES = 500
"""Failed conversations that are listed, at most."""


class Piece(NamedTuple):
    """A part of a message, and whether it repeats earlier text."""

    text: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class Bubble:
    """One message of a chat. place: of the speaker, decides side and colour. cut: characters that are not shown."""

    turn: int | None
    speaker: str
    place: int
    kind: str
    pieces: list[Piece]
    cut: int
    onset: bool
    alarm: bool


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as the page shows it. number: its place on the page, also its anchor."""

    number: int
    item: ConversationItem
    opening: Bubble | None
    bubbles: list[Bubble]
    ending: str


def write_report(path: str | Path, data: ReportData) -> Path:
    """Write the report atomically and return its path. Raises ConfigurationError if it cannot be written."""
    return write_page(path, render_report(data))


def render_report(data: ReportData) -> str:
    """Return the report as one HTML page."""
    selected = _select(data.conversations)
    found = _figures(data, selected)
    return render_page(
        "report.html.j2",
        {key: found[key] for key in ("figures", "series", "positions")},
        data=data,
        chats=[_chat(number, item) for number, item in enumerate(selected)],
        selection=_selection_text(data.conversations, selected),
        failures=[item for item in data.conversations if item.failed],
        listed_failures=LISTED_FAILURES,
        sampled=data.sampled,
        has_drift=any(item.drift for item in data.conversations),
        finding_texts={item.id: [(name, finding_text(f)) for name, f in item.findings] for item in selected},
        numbers={item.id: number for number, item in enumerate(selected)},
        **found,
    )


def _select(items: Sequence[ConversationItem]) -> list[ConversationItem]:
    """Return the conversations to show: looped ones, failed ones and a sample of the others, within the limits."""
    looped = [i for i in items if i.looped]
    failed = [i for i in items if i.failed and not i.looped]
    others = [i for i in items if not i.looped and not i.failed]
    sample = sorted(random.Random(0).sample(range(len(others)), min(MOST_OTHERS, len(others))))
    groups = [looped[:MOST_LOOPED], failed[:MOST_OTHERS], [others[i] for i in sample]]
    # If the page is too small for all of them, every group keeps the same share.
    shares = sorted((at / len(group), place, at) for place, group in enumerate(groups) for at in range(len(group)))
    room = PAGE_LIMIT
    chosen: list[tuple[int, int]] = []
    for _, place, at in shares:
        room -= _page_bytes(groups[place][at])
        if room < 0 and chosen:
            break
        chosen.append((place, at))
    return [groups[place][at] for place, at in sorted(chosen)]


def _selection_text(items: Sequence[ConversationItem], selected: Sequence[ConversationItem]) -> str:
    """Return which conversations the page shows; empty if it shows all."""
    if len(selected) == len(items):
        return ""
    parts = []
    for name, belongs in (
        ("that looped", lambda i: i.looped),
        ("that failed", lambda i: i.failed and not i.looped),
        ("others", lambda i: not i.looped and not i.failed),
    ):
        total, here = sum(map(belongs, items)), sum(map(belongs, selected))
        if total:
            drawn = ", drawn at random," if name == "others" and here < total else ""
            parts.append(f"{'all' if here == total else f'{here:,}{drawn} of the'} {total:,} {name}")
    return (
        f"Shown here: {'; '.join(parts)}. Tables and means count all {len(items):,} conversations;"
        " a2a-ray show SOURCE ID prints any of them."
    )


def _figures(data: ReportData, selected: Sequence[ConversationItem]) -> dict[str, Any]:
    """Return the variables of the template that name figures, and `figures`: anchor on the page -> plotly JSON."""
    page: dict[str, Figure] = {}

    def put(anchor: str, named: Sequence[tuple[str, Figure]]) -> list[tuple[str, str]]:
        page.update((f"{anchor}-{i}", figure) for i, (_, figure) in enumerate(named))
        return [(f"{anchor}-{i}", title) for i, (title, _) in enumerate(named)]

    for anchor, figure in (
        ("plateau", figures.plateau(data.plateau)),
        ("special", figures.special_pairs(data.plateau)),
    ):
        if figure is not None:
            page[anchor] = figure
    page.update((panel.name, panel.figure) for section in data.sections for panel in section.panels)
    measured = [i for i in data.conversations if i.distances]
    cells = list(dict.fromkeys(i.cell for i in measured))
    names = figures.distance_names(measured)
    points = [p for p in data.trajectory if isfinite(p.x) and isfinite(p.y)]
    number = {item.id: at for at, item in enumerate(selected)}
    panels = {
        "error_panels": put("error", figures.error_per_round(data.errors)),
        "mean_panels": put("mean", figures.mean_distances(measured, cells[: figures.MOST_CELLS])),
        "map_panels": put("map", figures.trajectory(points)),
    }
    if names:
        page["conversation"] = figures.conversation_template(names)
    if any(i.scores for i in selected):
        page["score"] = figures.score_template()
    return panels | {
        "figures": page,
        "series": {number[i.id]: figures.conversation_series(i, names) for i in selected if i.distances or i.scores},
        "positions": figures.positions(points, number),
        "cells": cells,
        "cell_titles": [
            f"{cell or 'all conversations'}{figures.cell_dash(place)[1]}"
            for place, cell in enumerate(cells[: figures.MOST_CELLS])
        ],
        "plateau_agents": figures.agents_of(data.plateau),
        "error_agents": figures.agents_of(data.errors),
        "distance_titles": [figures.TITLES.get(name, name) for name in names],
    }


def _chat(number: int, item: ConversationItem) -> Chat:
    transcript = item.transcript
    places = speaker_places(transcript)
    alarm = item.loop.alarm_turn if item.loop is not None else None
    bubbles = [
        _bubble(
            message,
            places[message.sender],
            item.spans[at] if at < len(item.spans) else (),
            onset=message.turn == item.onset,
            alarm=message.turn == alarm,
        )
        for at, message in enumerate(transcript.messages)
    ]
    opening = None if is_blank(transcript.opening.content) else _bubble(transcript.opening, 0, ())
    return Chat(number, item, opening, bubbles, ending(transcript))


def _bubble(
    message: Message, place: int, spans: Sequence[tuple[int, int]], onset: bool = False, alarm: bool = False
) -> Bubble:
    content = message.content
    if is_blank(content):
        pieces, cut = [], 0
    elif isinstance(content, str):
        pieces = [Piece(*piece) for piece in segments(content, spans, TEXT_LIMIT)]
        cut = max(len(content) - TEXT_LIMIT, 0)
    else:
        pieces, cut = [Piece(vector_text(content), False)], 0
    return Bubble(message.turn, message.sender, place, message.kind, pieces, cut, onset, alarm)


def _page_bytes(item: ConversationItem) -> int:
    """Return about how many bytes a conversation adds to the page."""
    from markupsafe import escape

    texts = [m.content[:TEXT_LIMIT] if isinstance(m.content, str) else "" for m in item.transcript.messages]
    return sum(len(escape(text).encode("utf-8", "replace")) + BUBBLE_BYTES for text in texts)
