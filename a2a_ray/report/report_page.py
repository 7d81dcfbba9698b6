"""One self-contained HTML file that shows a run: no network, readable on a phone, harmless whatever agents said."""

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
from a2a_ray.report.finding_text import described
from a2a_ray.report.page import render_page, write_page
from a2a_ray.report.plotly_traces import Figure
from a2a_ray.report.report_data import ConversationItem, ReportData

SHOWN_LOOPED = 200
"""At most so many looped conversations are shown as chats."""

SHOWN_OTHERS = 50
"""So many of the others are shown, drawn at random; and at most so many failed ones."""

TEXT_LIMIT = 20_000
"""A message is cut after so many characters."""

PAGE_LIMIT = 2_500_000
"""No further conversation is shown once so many bytes are: a phone must open the page, 4.8 MB of which are plotly."""

BUBBLE_BYTES = 220
"""What the page needs for a message besides its text."""

LISTED_FAILURES = 500
"""At most so many failed conversations are listed."""


class Piece(NamedTuple):
    """A stretch of a message, and whether it was said before."""

    text: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class Bubble:
    """One message of a chat; `place` of the speaker gives side and colour, `cut` counts what is not shown."""

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
    """A conversation as the page shows it; `number` is its place on the page and its anchor."""

    number: int
    item: ConversationItem
    opening: Bubble | None
    bubbles: list[Bubble]
    ending: str


def write_report(path: str | Path, data: ReportData) -> Path:
    """Writes the report, all or nothing, and gives its path. Raises ConfigurationError where it cannot be written."""
    return write_page(path, render_report(data))


def render_report(data: ReportData) -> str:
    """The report as one HTML page."""
    shown = choose(data.conversations)
    found = _figures(data, shown)
    return render_page(
        "report.html.j2",
        {key: found[key] for key in ("figures", "series", "positions")},
        data=data,
        chats=[_chat(number, item) for number, item in enumerate(shown)],
        shown=shown_in_words(data.conversations, shown),
        failures=[item for item in data.conversations if item.failed],
        listed_failures=LISTED_FAILURES,
        placed=data.placed,
        has_drift=any(item.drift for item in data.conversations),
        described={item.id: [(name, described(f)) for name, f in item.findings] for item in shown},
        numbers={item.id: number for number, item in enumerate(shown)},
        **found,
    )


def choose(items: Sequence[ConversationItem]) -> list[ConversationItem]:
    """The conversations to show: looped ones, failed ones and a sample of the others, up to the limits above."""
    looped = [i for i in items if i.looped]
    failed = [i for i in items if i.failed and not i.looped]
    others = [i for i in items if not i.looped and not i.failed]
    sample = sorted(random.Random(0).sample(range(len(others)), min(SHOWN_OTHERS, len(others))))
    groups = [looped[:SHOWN_LOOPED], failed[:SHOWN_OTHERS], [others[i] for i in sample]]
    # where the room does not suffice, each group keeps the same share of itself
    shares = sorted((at / len(group), place, at) for place, group in enumerate(groups) for at in range(len(group)))
    room = PAGE_LIMIT
    chosen: list[tuple[int, int]] = []
    for _, place, at in shares:
        room -= _page_bytes(groups[place][at])
        if room < 0 and chosen:
            break
        chosen.append((place, at))
    return [groups[place][at] for place, at in sorted(chosen)]


def shown_in_words(items: Sequence[ConversationItem], shown: Sequence[ConversationItem]) -> str:
    """Says which conversations are shown, where it is not all of them; empty where it is."""
    if len(shown) == len(items):
        return ""
    parts = []
    for what, mine in (
        ("that looped", lambda i: i.looped),
        ("that failed", lambda i: i.failed and not i.looped),
        ("others", lambda i: not i.looped and not i.failed),
    ):
        there, here = sum(map(mine, items)), sum(map(mine, shown))
        if there:
            chosen = ", drawn at random," if what == "others" and here < there else ""
            parts.append(f"{'all' if here == there else f'{here:,}{chosen} of the'} {there:,} {what}")
    return (
        f"Shown here: {'; '.join(parts)}. Tables and means count all {len(items):,} conversations;"
        " a2a-ray show SOURCE ID prints any of them."
    )


def wilson_interval(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), within [0, 1]; trials > 0."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    scale = 1 + z * z / trials
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def _figures(data: ReportData, shown: Sequence[ConversationItem]) -> dict[str, Any]:
    """The figures for the template, and `figures`: anchor on the page -> plotly JSON."""
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
    number = {item.id: at for at, item in enumerate(shown)}
    panels = {
        "error_panels": put("error", figures.error_per_round(data.errors)),
        "mean_panels": put("mean", figures.mean_distances(measured, cells[: figures.MOST_CELLS])),
        "map_panels": put("map", figures.trajectory(points)),
    }
    if names:
        page["conversation"] = figures.conversation_template(names)
    if any(i.scores for i in shown):
        page["score"] = figures.score_template()
    return panels | {
        "figures": page,
        "series": {number[i.id]: figures.conversation_series(i, names) for i in shown if i.distances or i.scores},
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
    """About how much a conversation adds to the page."""
    from markupsafe import escape

    texts = [m.content[:TEXT_LIMIT] if isinstance(m.content, str) else "" for m in item.transcript.messages]
    return sum(len(escape(text).encode("utf-8", "replace")) + BUBBLE_BYTES for text in texts)
