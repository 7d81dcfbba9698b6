"""What the loop detector costs: turns per second, cost of late turns, state, share of the embedder's own speed.

Turns have 50 words, drawn as often as words come in a language, from the packaged openings and made-up ones; nothing in
them repeats. One thread. `embedder_share` and `scan_s` are null where the default model, or the data folder beside the
repository, is missing.

    .venv/bin/python benchmarks/detector.py [--repetitions 5]
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import sys
import time
from importlib.resources import files
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from a2a_ray.analysis.loops import LoopDetector, scan_many
from a2a_ray.analysis.text.embedding import BATCH, Embedder, load_embedder
from a2a_ray.core.errors import A2AError
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.transcripts.jsonl import read_jsonl

WORDS, TURNS = 50, 10_000
TALKS, LENGTH = 30, 24
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def texts(count: int, seed: int) -> list[str]:
    """So many turns; another seed gives others."""
    rng = np.random.default_rng(seed)
    openings = (files("a2a_ray") / "data" / "openings.txt").read_text(encoding="utf-8")
    known = sorted({word.strip(".,;:!?\"'()").lower() for word in openings.split()} - {""})
    vocabulary = known + [f"{a}{b}" for a in known[:60] for b in known[60:90]]
    share = 1 / np.arange(3, len(vocabulary) + 3)
    order = np.random.default_rng(0).permutation(len(vocabulary))
    drawn = rng.choice(order, (count, WORDS), p=share / share.sum())
    return [" ".join(vocabulary[i] for i in row).capitalize() + "." for row in drawn]


def talk(name: str, said: list[str]) -> Transcript:
    transcript = Transcript(name, ("ann", "bob"))
    for i, text in enumerate(said):
        transcript.append(Message(name, i + 1, transcript.agents[i % 2], text))
    return transcript


def lexical(repetitions: int) -> dict[str, float]:
    """Of one conversation of 10 000 turns: turns/s, the cost of its last turns against early ones, its state in KB."""
    messages = talk("long", texts(TURNS, 1)).turns
    rates, costs, state = [], [], 0
    for _ in range(repetitions):
        detector = LoopDetector()
        marks = [time.process_time()]  # of this core alone, whatever else runs
        for message in messages:
            detector.update(message)
            marks.append(time.process_time())
        turns = np.diff(marks)
        rates.append(TURNS / (marks[-1] - marks[0]))
        # medians: what other processes do in between is not the detector's
        costs.append(float(np.median(turns[-400:]) / np.median(turns[100:500])))
        state = len(pickle.dumps(detector))
    rate, cost = statistics.median(rates), statistics.median(costs)
    return {"lexical_turns_per_s": round(rate), "late_turn_cost": round(cost, 2), "state_kb": round(state / 1024, 1)}


def embedder_share(repetitions: int) -> float | None:
    """Turns/s of scanning many conversations with the default model, over the model's own texts/s in batches of 32."""
    try:
        embedder = load_embedder()
        assert isinstance(embedder, Embedder)
        embedder.encode(texts(2 * BATCH, 2))  # loads the model
    except A2AError as error:
        print(f"no embedder: {error}", file=sys.stderr)
        return None
    model, shares = embedder._loaded(), []
    scan_many([talk("warm", texts(2, 3))], embedder)
    for i in range(repetitions):
        said = texts(2 * TALKS * LENGTH, 10 + i)
        own, ours = said[::2], said[1::2]
        started = time.perf_counter()
        model.encode(own, batch_size=BATCH, show_progress_bar=False)
        alone = time.perf_counter() - started
        talks = [talk(str(k), ours[k * LENGTH : (k + 1) * LENGTH]) for k in range(TALKS)]
        started = time.perf_counter()
        scan_many(talks, embedder)
        shares.append(alone / (time.perf_counter() - started))
    return round(statistics.median(shares), 3)


def scan_s(repetitions: int) -> float | None:
    """Seconds for the 645 + 184 conversations of the data folder, without an embedder, reading the files left out."""
    paths = [DATA / "llm_deliberation" / "llm_deliberation.jsonl", DATA / "who_when" / "who_when.jsonl"]
    if not all(path.exists() for path in paths):
        print(f"no {DATA}", file=sys.stderr)
        return None
    talks = [transcript for path in paths for transcript in read_jsonl(path)[0]]
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        scan_many(talks)
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    import torch

    torch.set_num_threads(1)
    result: dict[str, float | None] = dict(lexical(repetitions))
    result["embedder_share"] = embedder_share(repetitions)
    result["scan_s"] = scan_s(min(repetitions, 3))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
