"""Tables of equilibria, from findings."""

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
    """Measured beside predicted, a row a pair; None without pairs."""
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
    note = "Each agent's distance from its own objective, read after its own last turn, beside the closed form."
    return Table(PAIRS, columns, rows, note)


def equilibria_table(findings: Iterable[Finding], labels: Mapping[str, str]) -> Table | None:
    """How the conversations of each setting ended for their agents, pairs left out; None if there are no others.

    labels: of the settings, by id of the conversation.
    """
    counts: dict[str, Counter[str]] = {}
    why: dict[str, str] = {}
    for finding in findings:
        if finding.analyzer == "equilibrium" and finding.status != "none" and not is_pair(finding):
            label = labels.get(finding.conversation_id, "")
            counts.setdefault(label, Counter())[finding.status] += 1
            why.setdefault(label, finding.reason)
    if not counts:
        return None
    rows = [
        (label or "all", sum(found.values()), ", ".join(f"{n} {s}" for s, n in found.most_common()), why[label][:300])
        for label, found in counts.items()
    ]
    return Table(EQUILIBRIA, ("setting", "conversations", "outcome", "the first conversation"), rows)
