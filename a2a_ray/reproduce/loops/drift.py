"""How do conversations develop? Distances and drift per round, and paths through embedding space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from a2a_ray.report.figures import mean_distances, trajectory
from a2a_ray.report.page_parts import Panel, Section
from a2a_ray.report.plotly_traces import Trace, axis, line_trace, make_figure
from a2a_ray.report.report_data import ConversationItem
from a2a_ray.report.report_source import trajectory_points
from a2a_ray.report.results import Results
from a2a_ray.reproduce.loops.loop_settings import PUBLISHED_TOKENS
from a2a_ray.reproduce.loops.looping_rates import SettingRates, by_tokens


def drift_sections(results: Results, items: Sequence[ConversationItem], rates: Sequence[SettingRates]) -> list[Section]:
    """Return the sections on distances, drift and trajectories, for the published setting and its opposite."""
    names = {
        next(r for r in group if r.setting.tokens == PUBLISHED_TOKENS).setting.label: name
        for name, group in by_tokens(rates).items()
    }
    items = [replace(item, cell=names[item.cell]) for item in items if item.cell in names]
    sections = [_distances_section(items, names)]
    points, sampled = trajectory_points(results, items)
    if maps := trajectory(points):
        looped = sum(item.looped for item in items)
        sections.append(
            Section(
                "Trajectories",
                "A t-SNE map of the embeddings of all turns, one line per conversation. The loop detector found loops"
                f" in {looped} of the {len(items)} conversations of the two settings. {sampled}".rstrip(),
                [Panel(f"trajectory-{i}", figure, title) for i, (title, figure) in enumerate(maps)],
                (),
                "Turns with similar meaning lie close together. Colours run from the first turn (dark) to the last"
                " (light). In a loop the trajectory collapses into a few points.",
            )
        )
    return sections


def _distances_section(items: Sequence[ConversationItem], names: Mapping[str, str]) -> Section:
    settings = list(names.values())
    panels = [Panel(f"distance-{i}", f, title) for i, (title, f) in enumerate(mean_distances(items, settings))]
    if any(item.drift for item in items):
        traces: list[Trace] = []
        for i, name in enumerate(settings):
            drifts = [np.array(item.drift, dtype=np.float64) for item in items if item.cell == name]
            length = min(len(d) for d in drifts)
            mean = np.mean([d[:length] for d in drifts], axis=0)
            traces.append(line_trace(list(range(1, length + 1)), mean.tolist(), name, f"var(--cell-{i + 1})"))
        figure = make_figure(traces, axis("turn"), axis("mean drift", rangemode="tozero"), height=260)
        panels.append(Panel("drift", figure, "drift from the opening"))
    return Section(
        "Distances and drift per round",
        "The four published distances between the two outputs of a round, and the distance of each turn from the"
        " opening.",
        panels,
        [(name, f"cell-{i + 1}") for i, name in enumerate(settings)],
        "Means over all conversations of a setting. In a loop the distances fall to zero and stay there.",
    )
