"""Repetitive loops, found while the conversation runs. `LoopDetector` watches one; `scan` reads a whole transcript."""

from a2a_ray.analysis.loops.detector import EMBEDDED, LoopDetector
from a2a_ray.analysis.loops.evidence import MOST
from a2a_ray.analysis.loops.log import ANALYZER, VERSION, first_loop
from a2a_ray.analysis.loops.scan import Scan, scan, scan_many, to_embed

__all__ = [
    "ANALYZER",
    "EMBEDDED",
    "MOST",
    "VERSION",
    "LoopDetector",
    "Scan",
    "first_loop",
    "scan",
    "scan_many",
    "to_embed",
]
