"""Detection of repetitive loops while a conversation runs. `LoopDetector` watches one; `scan` reads a transcript."""

from a2a_ray.analysis.loops.detector import LoopDetector
from a2a_ray.analysis.loops.detector_findings import ANALYZER, VERSION, first_loop
from a2a_ray.analysis.loops.meaning import EMBEDDED_CHARACTERS
from a2a_ray.analysis.loops.repetition_sum import MAX_SCORE
from a2a_ray.analysis.loops.scan import Scan, scan, scan_many, texts_to_embed

__all__ = [
    "ANALYZER",
    "EMBEDDED_CHARACTERS",
    "MAX_SCORE",
    "VERSION",
    "LoopDetector",
    "Scan",
    "first_loop",
    "scan",
    "scan_many",
    "texts_to_embed",
]
