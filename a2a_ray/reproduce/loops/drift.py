"""How talks run: the published distances and drift round by round, and their way through embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from a2a_ray.report.figures import mean_distances, trajectory
from a2a_ray.report.page_parts import Panel, Section
from a2a_ray.report.plotly_traces import axis, line_trace, make_figure
from a2a_ray.report.report_data import ConversationItem
from a2a_ray.report.report_source import trajectory_points
from a2a_ray.report.results import Results
from a2a_ray.reproduce.loops.factors import PUBLISHED_TOKENS
from a2a_ray.reproduce.loops.looping_rates import Cell, by_tokens


def course_sections(results: Results, items: Sequence[ConversationItem], cells: Sequence[Cell]) -> list[Section]:
    """Mean distances, drift and trajectories in the published setting and in its opposite."""
    names = {
        next(c for c in group if c.setting.tokens == PUBLISHED_TOKENS).setting.label: name
        for name, group in by_tokens(cells).items()
    }
    items = [replace(item, cell=names[item.cell]) for item in items if item.cell in names]
    shown = list(names.values())
    panels = [Panel(f"distance-{place}", f, title) for place, (title, f) in enumerate(mean_distances(items, shown))]
    if any(item.drift for item in items):
        traces = []
        for place, name in enumerate(shown):
            drifts = [np.array(item.drift, dtype=np.float64) for item in items if item.cell == name]
            length = min(len(d) for d in drifts)
            mean = np.mean([d[:length] for d in drifts], axis=0)
            traces.append(line_trace(list(range(1, length + 1)), mean.tolist(), name, f"var(--cell-{place + 1})"))
        figure = make_figure(traces, axis("turn"), axis("mean drift", rangemode="tozero"), height=260)
        panels.append(Panel("drift", figure, "drift from the opening"))
    sections = [
        Section(
            "Distances and drift, round by round",
            "The four published distances between the two outputs of a round, and how far a turn is from the opening.",
            panels,
            [(name, f"cell-{place + 1}") for place, name in enumerate(shown)],
            "Means over all talks of a setting. A loop shows as a distance that falls to zero and stays there.",
        )
    ]
    points, placed = trajectory_points(results, items)
    maps, looped = trajectory(points), sum(item.looped for item in items)
    if maps:
        sections.append(
            Section(
                "Trajectories",
                f"Every turn on one t-SNE map of its embedding, a line a conversation. {looped} of {len(items)}"
                f" conversations of the two settings looped, as the loop detector judges. {placed}".rstrip(),
                [Panel(f"trajectory-{place}", figure, title) for place, (title, figure) in enumerate(maps)],
                (),
                "Turns that say alike lie close. Colour: from the first turn (dark) to the last (light). A loop"
                " shows as a trajectory that collapses into a few points.",
            )
        )
    return sections
