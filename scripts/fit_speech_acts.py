"""Compare the list of empty speech acts with classifiers of sentences, each source left out in turn. Writes JSON.

Reads benchmarks/speech_acts.jsonl: sentences with their speech act (N says something, all others are empty). Every
classifier is a logistic regression, trained on the other sources, and judged on the source that was left out:

    list        the English phrases of a2a_ray/data/loops/acts_en.txt, as shipped
    words       sequences of one and two words, and of three to five characters
    cues        length, punctuation, "you", "we", positive adjectives, numbers, function words; see `cues`
    words+cues  both
    embedding   sentence embeddings; only with --embedder

`or list` counts a sentence that the list or the classifier takes for empty. The conversations are those of
benchmarks/loops.py, and need ../shared/data. There too the weights come from the other sources.

    python scripts/fit_speech_acts.py [--embedder sentence-transformers/all-MiniLM-L6-v2] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from a2a_ray.analysis.loops import empty_acts
from a2a_ray.analysis.loops.act_lexicon import ActLexicon, act_lexicon, function_words
from a2a_ray.analysis.text.embedding import Embedder, load_embedder

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import loops  # noqa: E402

CUTS = (0.5, 0.7, 0.85)
LONGEST = 36
"""No longer sentence, and none with figures, is given to a classifier."""

OTHERS = "others"
SMALL = {"agent-as-a-judge", "camel", "intercode", "react", "sentinel", "swe-agent"}
"""Sources with four empty sentences or fewer are left out together."""

REPOSITORIES = {
    "radi-cho/botbots": "botbots",
    "sierra-research/tau-bench": "tau-bench",
    "microsoft/autogen": "autogen",
    "tensegrity-ai/pidgin": "pidgin",
    "radiodee1/pi-llm": "pi-llm",
    "martijnat/llm-echochamber": "llm-echochamber",
    "kushalchawla/CaSiNo": "casino",
}

POSITIVE = re.compile(
    r"\b(?:great|good|nice|wonderful|amazing|beautiful|excellent|perfect|happy|glad|love|lovely|best|kind|awesome"
    r"|fantastic|deep\w*|profound\w*|positiv\w+|meaningful|rich|remarkable|fascinating|interesting|important"
    r"|incredible|enjoy\w*|pleasure|delight\w*|success\w*|grow\w*|support\w*|inspir\w+|extraordinary|special|truly"
    r"|absolutely|definitely|exactly)\b"
)
YOU = frozenset({"you", "your", "yours", "you're", "you've", "you'll"})
ME = frozenset({"i", "me", "my", "i'm", "i've", "i'll"})
US = frozenset({"we", "us", "our", "we're", "we've", "let's", "together"})
THIS = frozenset({"this", "that", "that's"})
FUNCTION = YOU | ME | US | THIS | {word for word, of in function_words().items() if "en" in of}

Probability = Callable[[Sequence[str]], Any]


def split(sentence: str) -> list[str]:
    """Return the words of a sentence in lower case, as the detector counts them."""
    return empty_acts._WORD.findall(sentence)


def cues(sentence: str) -> list[float]:
    """Return cues that do not depend on the subject of a conversation."""
    found = split(sentence)
    count = max(len(found), 1)

    def share(of: frozenset[str]) -> float:
        return sum(word in of for word in found) / count**0.5

    return [
        min(count, 30) / 10,
        float(count <= 4),
        float(count > 18),
        float(sentence.rstrip('"* ').endswith("?")),
        float("!" in sentence),
        float(bool(empty_acts._FACTS.search(sentence))),
        float(":" in sentence),
        float(bool(re.search(r'["“`]', sentence))),
        float(bool(re.match(r"\W*(?:[-*#•]|\d+\.)\s", sentence))),
        share(YOU),
        share(ME),
        share(US),
        share(THIS),
        len(POSITIVE.findall(sentence)) / count**0.5,
        sum(word in FUNCTION for word in found) / count,
        sum(len(word) > 8 for word in found) / count,
        float("please" in found),
        float("but" in found),
    ]


def fit(kind: str, texts: Sequence[str], empty: Any, embedder: Embedder | None) -> Probability:
    """Return the function from sentences to probabilities that they are empty."""
    columns: list[Callable[[Sequence[str]], Any]] = []
    if "words" in kind:
        word = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=r"[^\W\d_]+(?:'[^\W\d_]*)*|[!?]", min_df=2, sublinear_tf=True
        )
        character = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True)
        columns += [word.fit(texts).transform, character.fit(texts).transform]
    if "cues" in kind:
        columns.append(lambda said: csr_matrix([cues(each) for each in said]))
    if kind == "embedding" and embedder is not None:
        columns.append(lambda said: csr_matrix(4 * np.asarray(embedder.encode(list(said)))))

    def features(said: Sequence[str]) -> Any:
        return hstack([column(said) for column in columns]).tocsr()

    model = LogisticRegression(C=4 if kind == "words" else 1, max_iter=3000, class_weight="balanced", random_state=0)
    model.fit(features(texts), empty)
    return lambda said: model.predict_proba(features(said))[:, 1] if len(said) else np.zeros(0)


def in_list(sentence: str) -> bool:
    """Return whether the list of English phrases takes a sentence for empty."""
    return empty_acts.is_empty(sentence, len(split(sentence)), act_lexicon("en"))


def scores(told: Any, empty: Any) -> list[float]:
    """Return precision and recall."""
    hits = int((told & empty).sum())
    return [round(hits / max(int(told.sum()), 1), 2), round(hits / max(int(empty.sum()), 1), 2)]


def sentence_figures(
    texts: list[str], source: Any, empty: Any, models: dict[str, dict[str, Probability]]
) -> dict[str, Any]:
    """Return [precision, recall] by source and over all, of each classifier alone and with the list, and the AUC."""
    listed = np.array([in_list(text) for text in texts])
    names = sorted(set(source))
    result: dict[str, Any] = {"list": {name: scores(listed[source == name], empty[source == name]) for name in names}}
    result["list"]["all"] = scores(listed, empty)
    for kind, by_source in models.items():
        p = np.zeros(len(texts))
        for name in names:
            p[source == name] = by_source[name]([text for text, of in zip(texts, source, strict=True) if of == name])
        auc = {name: round(float(roc_auc_score(empty[source == name], p[source == name])), 2) for name in names}
        result[kind] = {"auc": auc, "mean_auc": round(float(np.mean(list(auc.values()))), 3)}
        for cut in CUTS:
            both = (p > cut) | listed
            result[kind][f"above {cut}"] = scores(p > cut, empty)
            result[kind][f"above {cut} or list"] = {
                "all": scores(both, empty),
                **{name: scores(both[source == name], empty[source == name]) for name in names},
            }
    return result


def source_of(conversation: dict[str, Any]) -> str:
    """Return the name of the source that is left out for a conversation."""
    source = conversation.get("source")
    return REPOSITORIES.get(source["repo"], OTHERS) if isinstance(source, dict) and "repo" in source else OTHERS


def candidates(conversations: Sequence[dict[str, Any]]) -> list[str]:
    """Return the sentences that a classifier would be asked about, in lower case."""
    found: dict[str, None] = {}
    for each in conversations:
        for turn in each["turns"]:
            if turn.get("kind", "message") != "message":
                continue
            text = str(turn["text"] or "")[: empty_acts.READ]
            for sentence in empty_acts._SENTENCE_END.sub("\\g<0>\n", text).split("\n"):
                lowered = sentence.lower().replace("’", "'")
                if 0 < len(split(lowered)) <= LONGEST and not empty_acts._FACTS.search(lowered):
                    found[lowered] = None
    return list(found)


def alarms(conversations: list[dict[str, Any]], by_source: dict[str, Probability], cut: float) -> list[int | None]:
    """Return the index of the first alarm of each conversation, with the list or the classifier."""
    found: list[int | None] = [None] * len(conversations)
    listed = empty_acts.is_empty
    for name in sorted({source_of(each) for each in conversations}):
        places = [i for i, each in enumerate(conversations) if source_of(each) == name]
        mine = [conversations[i] for i in places]
        said = candidates(mine) if cut < 1 else []
        empty = {text for text, p in zip(said, by_source[name](said), strict=True) if p > cut}

        def either(sentence: str, count: int, known: ActLexicon, empty: set[str] = empty) -> bool:
            return listed(sentence, count, known) or sentence in empty

        empty_acts.is_empty = either
        try:
            for place, scan in zip(places, loops.scan_many([each["transcript"] for each in mine], None), strict=True):
                found[place] = loops.index(scan)
        finally:
            empty_acts.is_empty = listed
    return found


def conversation_figures(models: dict[str, dict[str, Probability]]) -> dict[str, Any]:
    """Return loops found, false alarms, and alarms in ordinary conversations, for the list and each classifier."""
    sets = {
        name: loops.read(loops.SHARED / f"{name}.jsonl") for name in ("loops_llm", "loops_dev", "loops_mas", "prose")
    }
    lines = (loops.SHARED / "ordinary_llm.jsonl").read_text(encoding="utf-8").splitlines()
    ordinary = [json.loads(line) for line in lines]
    for each in ordinary:
        each["transcript"] = loops.Transcript.from_exchange(each)

    def figures(by_source: dict[str, Probability], cut: float) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, conversations in sets.items():
            told = [
                loops.verdict(c, at) for c, at in zip(conversations, alarms(conversations, by_source, cut), strict=True)
            ]
            row[name] = {"found": told.count("hit"), "early or late": told.count("early") + told.count("late")}
            row[name]["missed"], row[name]["false"] = told.count("missed"), told.count("false")
        raised: dict[str, list[bool]] = {}
        for each, at in zip(ordinary, alarms(ordinary, by_source, cut), strict=True):
            raised.setdefault(each["id"].removeprefix("o-").rpartition("-")[0], []).append(at is not None)
        return row | {name: f"{sum(alarm)} of {len(alarm)}" for name, alarm in sorted(raised.items())}

    result = {"list": figures(next(iter(models.values())), 1.0)}
    for kind, by_source in models.items():
        for cut in CUTS:
            result[f"{kind} above {cut} or list"] = figures(by_source, cut)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedder", default="none", help="sentence-embedding model; none by default")
    parser.add_argument("--cache", type=Path, help="Parquet file in which embeddings are stored")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "speech_acts.json")
    settings = parser.parse_args()
    embedder = load_embedder(settings.embedder, settings.cache)
    lines = (ROOT / "benchmarks" / "speech_acts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [row["text"].lower().replace("’", "'") for row in rows]
    source = np.array([OTHERS if row["source"] in SMALL else row["source"] for row in rows])
    empty = np.array([row["act"] != "N" for row in rows])
    models: dict[str, dict[str, Probability]] = {}
    for kind in ("words", "cues", "words+cues", *(["embedding"] if embedder else [])):
        models[kind] = {}
        for name in sorted(set(source)):
            others = [i for i in range(len(rows)) if source[i] != name]
            models[kind][name] = fit(kind, [texts[i] for i in others], empty[others], embedder)
    fresh = np.array([row["reader"] == 2 for row in rows])
    listed = np.array([in_list(text) for text in texts])
    result: dict[str, Any] = {"list on the sentences of reader 2": scores(listed[fresh], empty[fresh])}
    result["sentences"] = sentence_figures(texts, source, empty, models)
    if (loops.SHARED / "loops_llm.jsonl").exists():
        result["conversations"] = conversation_figures(models)
    if embedder is not None and settings.cache:
        embedder.save()
    settings.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
