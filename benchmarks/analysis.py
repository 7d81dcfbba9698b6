"""One finding, one answer; and what an analysis of a large run costs. One JSON object.

disagree: conversations on which `analyze`, `detect`, `report`, `show` and an observer that watches live say different
things (whether it looped, onset, alarm, period, score), with equal settings: benchmarks/conversations.jsonl,
../shared/data/loops_llm.jsonl, and a run of 200 conversations with a live observer. ordinary: alarms in
../shared/data/ordinary_llm.jsonl, default settings, by source.

The rest is measured on runs of 25 turns of 38 words (about 50 tokens, the length of arXiv 2512.06256) by function
agents that repeat themselves now and then; each figure in a process of its own, Ray started before the clock. memory:
peak resident memory of the driver, 20 000 conversations against 2 000. workers: seconds with one Ray task at once
against two. turns_per_second: with two. again: seconds of the second analysis of the same run against the first.

    python benchmarks/analysis.py [--conversations 20000] [--only disagree,ordinary,cost]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from html import unescape
from pathlib import Path
from typing import Any

from a2a_ray import Conversation, FunctionAgent, open_run, run_experiment
from a2a_ray.analysis.loops import LoopDetector, first_loop
from a2a_ray.core.findings import Finding
from a2a_ray.core.message import Message
from a2a_ray.transcripts.jsonl import read_jsonl

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared" / "data"
COMMAND = [str(Path(sys.executable).with_name("a2a-ray"))]
WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi", "su", "te", "vo") for b in ("ra", "ne", "pi", "do") for c in "stnlm"]
TURNS, LENGTH = 25, 38

Answer = tuple[bool, int | None, int | None, int | None]
"""Whether it looped, onset, alarm, period."""


def babble(name: str) -> FunctionAgent:
    """An agent that says random words; in one conversation of four it repeats itself from some turn on."""

    def say(message: Message) -> str:
        opening = random.Random(f"{message.conversation} {name}")
        again = opening.random() < 0.25 and (message.turn or 0) > 8
        draw = opening if again else random.Random(f"{message.seed}")
        return " ".join(draw.choices(WORDS, k=LENGTH))

    return FunctionAgent(name, say, "message")


def make_run(folder: Path, conversations: int, **more: Any) -> str:
    """The path of a new run."""
    spec = {
        "agents": [{"name": name, "kind": "benchmarks.analysis:babble"} for name in ("ann", "bob")],
        "openings": ["Hello."],
        "repeats": conversations,
        "max_turns": TURNS,
        **more,
    }
    return str(run_experiment(spec, storage=folder, progress=False).path)


# --- agreement


def answer(loop: Finding | None) -> Answer:
    return (False, None, None, None) if loop is None else (True, loop.onset_turn, loop.alarm_turn, loop.period)


def answers(findings: list[dict[str, Any]], ids: list[str]) -> dict[str, Answer]:
    """Of the loop detector, by conversation."""
    found: dict[str, list[Finding]] = {id: [] for id in ids}
    for each in findings:
        if each["analyzer"] == "loops":
            found[each["conversation_id"]].append(Finding.from_dict(each))
    return {id: answer(first_loop(each)) for id, each in found.items()}


def ask(*arguments: str) -> str:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True, cwd=HERE.parent).stdout


def by_json(command: str, source: str, ids: list[str]) -> dict[str, Answer]:
    found = json.loads(ask(command, source, "--json").splitlines()[-1])
    said = answers(found["findings"], ids)
    assert sorted(found["looped"]) == sorted(id for id, each in said.items() if each[0])
    return said


def in_words(text: str) -> Answer:
    """The answer from what people read: "loop (verbatim), from turn 5, alarm after turn 9, period 2 (score ...)"."""
    if not text.startswith("loop"):
        return False, None, None, None
    numbers = [re.search(pattern, text) for pattern in (r"from turn (\d+)", r"alarm after turn (\d+)", r"period (\d+)")]
    onset, alarm, period = (int(found[1]) if found else None for found in numbers)
    return True, onset, alarm, period


def by_show(source: str, ids: list[str]) -> dict[str, Answer]:
    said: dict[str, Answer] = {}
    text = subprocess.run(
        [*COMMAND, "show", source, "--limit", "0"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "2000", "PATH": "/usr/bin:/bin"},
    ).stdout
    parts = re.split(r"^─* (\S+) ─*$", text, flags=re.M)
    for id, body in zip(parts[1::2], parts[2::2], strict=True):
        if id in ids:
            line = re.search(r"^loops: (.*)$", body[: body.find("\n\n")], flags=re.M)
            said[id] = in_words(line[1] if line else "")
    return said


def by_report(source: str, folder: Path) -> dict[str, Answer]:
    """Of the conversations that the page shows."""
    page = folder / "report.html"
    ask("report", source, "-o", str(page))
    said: dict[str, Answer] = {}
    for id, table in re.findall(
        r'<details class="talk"[^>]*>\s*<summary><span class="id">([^<]*)<.*?<dl class="findings">(.*?)</dl>',
        page.read_text(encoding="utf-8"),
        flags=re.S,
    ):
        row = re.search(r"<dt>loops</dt><dd[^>]*>(.*?)</dd>", table)
        assert row is not None
        said[unescape(id).strip()] = in_words(unescape(row[1]))
    return said


def disagreements(source: str, live: dict[str, Answer], folder: Path) -> tuple[int, int]:
    """Conversations on which not all say the same, and how many there are."""
    ids = list(live)
    said = [live, by_json("analyze", source, ids), by_json("detect", source, ids), by_show(source, ids)]
    shown = by_report(source, folder)
    wrong = [id for id in ids if len({each[id] for each in said} | ({shown[id]} if id in shown else set())) > 1]
    return len(wrong), len(ids)


def live_on_file(path: Path) -> dict[str, Answer]:
    """What an observer says of conversations that it sees message by message."""
    said = {}
    for transcript in read_jsonl(path)[0]:
        names = transcript.agents or ("nobody",)
        agents = [FunctionAgent(f"a{i}", str) for i in range(len(names))]
        observer = LoopDetector()
        Conversation(agents, transcript=transcript, observers=[observer], max_turns=10**6)
        said[transcript.id] = answer(first_loop(observer.findings(transcript.id)))
    return said


def agreement() -> dict[str, str]:
    result = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in (HERE / "conversations.jsonl", SHARED / "loops_llm.jsonl"):
            if file.exists():
                wrong, of = disagreements(str(file), live_on_file(file), folder)
                result[file.stem] = f"{wrong} of {of}"
        run = open_run(make_run(folder, 200, observers=[{"kind": "loops"}]))
        live = answers([f.to_dict() for f in run.findings()], [t.id for t in run.transcripts()])
        wrong, of = disagreements(run.path, live, folder)
        result["run"] = f"{wrong} of {of}"
        exported = folder / "exported.jsonl"
        ask("export", run.path, "-o", str(exported))
        wrong, of = disagreements(str(exported), live, folder)
        result["the run, exported"] = f"{wrong} of {of}"
    return result


def ordinary() -> dict[str, str]:
    """Alarms of `detect`, by source: ids are o-SOURCE-NUMBER."""
    file = SHARED / "ordinary_llm.jsonl"
    if not file.exists():
        return {}
    looped = set(json.loads(ask("detect", str(file), "--json").splitlines()[-1])["looped"])
    alarms: dict[str, list[bool]] = {}
    for transcript in read_jsonl(file)[0]:
        source = transcript.id.removeprefix("o-").rpartition("-")[0]
        alarms.setdefault(source, []).append(transcript.id in looped)
    return {source: f"{sum(each)} of {len(each)}" for source, each in sorted(alarms.items())}


# --- cost


def measured(path: str, workers: int, keep: bool = False) -> dict[str, float]:
    """Seconds and peak memory (MB) of the driver of one analysis, in a process of its own."""
    if not keep:
        shutil.rmtree(Path(path) / "findings", ignore_errors=True)
    code = f"import benchmarks.analysis as b; b.one({path!r}, {workers})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parent, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(path: str, workers: int) -> None:
    """Analyzes a run and prints what it took. Runs in a process of its own."""
    import ray

    from a2a_ray import analyze_run

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.get([ray.remote(_warm).remote() for _ in range(2)])
    run = open_run(path)
    started = time.perf_counter()
    analyze_run(run, workers=workers)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))


def _warm() -> None:
    """Loads in a worker process what an analysis needs."""
    import a2a_ray.runtime.analyze_run  # noqa: F401

    time.sleep(0.5)


def cost(conversations: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        large = make_run(Path(name), conversations)
        small = make_run(Path(name), conversations // 10)
        of_small = measured(small, 2)
        two = measured(large, 2)
        again = measured(large, 2, keep=True)
        alone = measured(large, 1)
        turns = conversations * TURNS
    return {
        "conversations": conversations,
        "memory": round(two["mb"] / of_small["mb"], 3),
        "memory_mb": [round(of_small["mb"]), round(two["mb"])],
        "workers": round(alone["seconds"] / two["seconds"], 2),
        "turns_per_second": round(turns / two["seconds"]),
        "again": round(again["seconds"] / two["seconds"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=20_000)
    parser.add_argument("--only", default="disagree,ordinary,cost")
    options = parser.parse_args()
    chosen = options.only.split(",")
    result: dict[str, Any] = {}
    if "disagree" in chosen:
        result["disagree"] = agreement()
    if "ordinary" in chosen:
        result["ordinary"] = ordinary()
    if "cost" in chosen:
        result |= cost(options.conversations)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
