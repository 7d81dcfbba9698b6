"""Tables of equilibria, made from findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from a2a_ray.core.findings import Finding
from a2a_ray.report.agent_pairs import Pair, is_pair
from a2a_ray.report.page_parts import Table

PAIRS = "Where pairs of agents settled"
EQUILIBRIA = "Equilibria"
"""Titles of the tables."""


def pairs_table(pairs: Sequence[Pair]) -> Table | None:
    """Return the measured and predicted residuals, one row per pair; None without pairs."""
    if not pairs:
        return None
    rows = [
        (
            p.label,
            p.status.replace("_", " "),
            p.gap,
            p.measured[0],
            p.predicted[0],
            p.measured[1],
            p.predicted[1],
            p.largest_error(),
            p.settled_round,
        )
        for p in pairs
    ]
    w, u = pairs[0].agent_names
    columns = ("pair", "outcome", "gap", w, "closed form", u, "closed form", "error / gap", "settled in round")
    note = "Distance of each agent from its own objective after its own last turn, next to the closed form."
    return Table(PAIRS, columns, rows, note)


def equilibria_table(findings: Iterable[Finding], labels: Mapping[str, str]) -> Table | None:
    """Count the outcomes of the conversations in each setting, without pairs; None if there are only pairs.

    labels: of the settings, by conversation id.
    """
    counts: dict[str, Counter[str]] = {}
    reasons: dict[str, str] = {}
    for finding in findings:
        if finding.analyzer == "equilibrium" and finding.status != "none" and not is_pair(finding):
            label = labels.get(finding.conversation_id, "")
            counts.setdefault(label, Counter())[finding.status] += 1
            reasons.setdefault(label, finding.reason)
    if not counts:
        return None
    rows = [
        (label or "all", sum(each.values()), ", ".join(f"{n} {s}" for s, n in each.most_common()), reasons[label][:300])
        for label, each in counts.items()
    ]
    return Table(EQUILIBRIA, ("setting", "conversations", "outcome", "the first conversation"), rows)
