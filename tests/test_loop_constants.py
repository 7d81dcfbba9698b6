"""The constants of the loop detector are those that scripts/fit_loops.py chose, with the report beside the docs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

REPORT = Path(__file__).resolve().parents[1] / "docs" / "method" / "loop_constants.json"


def test_no_constant_differs_from_the_report() -> None:
    chosen = json.loads(REPORT.read_text(encoding="utf-8"))["constants"]
    assert len(chosen) == 35
    shipped = {}
    for name in chosen:
        module, _, own = name.partition(".")
        shipped[name] = getattr(importlib.import_module(f"a2a_ray.analysis.loops.{module}"), own)
    assert shipped == chosen, "run scripts/fit_loops.py and commit its report with the new constants"
