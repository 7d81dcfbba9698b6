"""A finding as one line of text."""

from __future__ import annotations

from a2a_ray.core.findings import LOOP, NOT_APPLICABLE, RECOVERED, WARNING, Finding

_STATUS = {LOOP: "loop", RECOVERED: "loop that ended", WARNING: "warning"}


def finding_text(finding: Finding) -> str:
    """Return one line: what was found, from which turn, with which period and score."""
    if finding.status == NOT_APPLICABLE:
        return f"does not apply: {finding.reason}"
    if finding.status == "none":
        return "nothing found" + (f": {finding.reason}" if finding.reason else "") + _score(finding)
    parts = [_STATUS.get(finding.status, finding.status.replace("_", " "))]
    if finding.kind and finding.kind not in (finding.analyzer, "close_rounds"):
        parts[0] += f" ({finding.kind.replace('_', ' ')})"
    if finding.onset_turn is not None:
        parts.append(f"from turn {finding.onset_turn}")
    if finding.alarm_turn is not None:
        parts.append(f"alarm after turn {finding.alarm_turn}")
    if finding.recovered_turn is not None:
        parts.append(f"until turn {finding.recovered_turn - 1}")
    if finding.period:
        parts.append(f"period {finding.period}")
    if finding.reason and (finding.onset_turn is None or finding.analyzer == "judge"):
        parts.append(finding.reason)
    return ", ".join(parts) + _score(finding)


def _score(finding: Finding) -> str:
    if finding.score is None or finding.threshold is None:
        return ""
    return f" (score {finding.score:.3g}, threshold {finding.threshold:.3g})"
