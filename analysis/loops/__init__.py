"""Repetitive loops, found while the conversation runs. `LoopDetector` watches one; `scan` reads a whole transcript."""

from a2a_ray.analysis.loops.detector import EMBEDDED, SCORE, LoopDetector
from a2a_ray.analysis.loops.evidence import MOST
from a2a_ray.analysis.loops.scan import Scan, scan, scan_many, to_embed

__all__ = ["EMBEDDED", "MOST", "SCORE", "LoopDetector", "Scan", "scan", "scan_many", "to_embed"]
