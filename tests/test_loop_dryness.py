"""Talk that has run dry: nothing is copied, and nothing is added any more."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from a2a_ray.analysis.embedding import Embedder, load_embedder
from a2a_ray.analysis.loops import LoopDetector, openings, scan, scan_many, to_embed
from a2a_ray.analysis.loops.dryness import BEFORE, FIRST, NOT_DRY, OPENING, Dryness, opening
from a2a_ray.analysis.loops.semantic import Scale, scale_of
from tests.talks import transcript

BEGUN = [
    "My allotment has heavy clay and floods every February. Would you dig drains, or build the beds up?",
    "I'd build up. Drains need somewhere to lead to, and most allotments have no ditch. Sleepers 30 cm high are enough"
    " for carrots.",
    "Sleepers cost forty pounds each here. A neighbour used old scaffold boards, which rot after six years or so.",
    "Scaffold boards are fine. Burn the inner face black first; charred larch lasted eleven years near Exeter.",
    "What about worms? I heard that clay beds lose theirs when they are dug over in autumn.",
    "They do. Leave the soil alone, spread leaf mould in November, and the worms pull it down by April.",
]
DRY = [
    "Exactly. If the soil is left in peace, the bed looks after itself, and the gardener just has to trust it.",
    "I agree completely. Trusting the soil and leaving it in peace is really the heart of gardening.",
    "Well said. Patience with the soil is the heart of it, and a patient gardener is always rewarded.",
    "Absolutely. Being patient and gentle with the ground is what makes a garden thrive in the end.",
    "That's so true. A garden thrives where the gardener is gentle and lets the earth do its own work.",
    "I couldn't agree more. The earth does the work, and all we have to do is to be gentle and wait.",
    "Yes, that's it. Waiting gently and letting the earth work is what good gardening comes down to.",
    "Beautifully put. Good gardening comes down to gentle waiting, and the soil repays that trust.",
    "I think that captures it. The soil repays our trust when we are gentle, and patience brings the garden to life.",
    "Indeed. With patience and trust the garden comes to life, and the soil gives back what we let it keep.",
]
GOING_ON = [
    "Exactly. Then the next job is water: my butt holds 200 litres and is empty by the middle of June.",
    "I agree that one is too small. Link three with hose at the base, and let a shed roof fill them.",
    "Well said. The shed belongs to Mrs Okafor, who would like tomatoes in return. Which sort copes with blight?",
    "That's a great point. Crimson Crush stood up to it in 2023, and Losetto does in pots. Both taste rather plain.",
    "True. My children only eat yellow ones anyway, so perhaps Sungold under glass, sown in the first week of March.",
    "Yes, and pinch the side shoots every Sunday. Feed with comfrey: fill a bucket, weigh it down, wait a month.",
    "I know that smell! The committee banned comfrey buckets near the car park after a wedding last summer.",
    "Understood. Then buy seaweed extract; five pounds a bottle, and one capful to a can every fortnight is plenty.",
    "Great. Last thing: foxes dug up the onions twice, and a net only caught a hedgehog, which we had to cut free.",
    "Poor thing. Lay chicken wire flat under the mulch, foxes hate how it feels, and hedgehogs walk over it.",
]


def test_a_talk_that_has_run_dry_is_a_loop(embedder: Embedder) -> None:
    found = scan(transcript(*BEGUN, *DRY), embedder)
    assert found.finding is not None
    assert found.finding["kind"] == "semantic"
    assert len(BEGUN) - 1 <= found.finding["onset"] <= len(BEGUN) + 5
    assert 0.3 < found.finding["similarity"] <= 1
    assert scan(transcript(*BEGUN, *DRY)).alarm is None, "no word of it is copied"


def test_a_talk_that_goes_on_in_the_same_manner_is_none(embedder: Embedder) -> None:
    assert scan(transcript(*BEGUN, *GOING_ON), embedder).highest <= 0.5


def test_new_content_takes_the_alarm_back(embedder: Embedder) -> None:
    found = scan(transcript(*BEGUN, *DRY, *GOING_ON, *BEGUN[::-1]), embedder)
    assert found.finding is not None
    assert len(BEGUN) + len(DRY) <= found.finding["recovers_at"] <= len(BEGUN) + len(DRY) + 6


def test_a_pickled_state_goes_on_exactly_the_same(embedder: Embedder) -> None:
    said = transcript(*BEGUN, *DRY).turns
    whole = scan(transcript(*BEGUN, *DRY), embedder).scores
    for cut in range(1, len(said)):
        detector, scores = LoopDetector(embedder), []
        for i, message in enumerate(said):
            if i == cut:
                detector = pickle.loads(pickle.dumps(detector))
            detector.update(message)
            scores.append(detector.score)
        assert scores == whole


def test_openings_are_embedded_only_where_the_rest_speaks_for_it(embedder: Embedder) -> None:
    scale = scale_of(embedder)
    for said, news, few, many in ((BEGUN + GOING_ON, 0.65, 0, 0), (BEGUN + DRY, 0.4, len(DRY), 16)):
        asked: list[str] = []

        def embed(text: str, asked: list[str] = asked) -> np.ndarray:
            asked.append(text)
            return embedder.vector(text)

        dryness = Dryness()
        for text in said:
            dryness.read(embedder.vector(text), news, text, scale, embed)
        assert few <= len(asked) <= many
        assert len(set(asked)) == len(asked), "once each"


def test_the_first_turns_say_nothing(embedder: Embedder) -> None:
    scale, dryness = scale_of(embedder), Dryness()
    signs = [dryness.read(embedder.vector(t), 0.5, t, scale, embedder.vector).sign for t in [DRY[0]] * (FIRST + BEFORE)]
    assert signs[:FIRST] == [NOT_DRY] * FIRST
    assert all(np.isfinite(signs))


def test_openings() -> None:
    assert opening("Exactly. I agree with you! And more.") == "Exactly. I agree with you!"
    assert opening("  One two three four. Five.") == "One two three four."
    assert opening("Well\nthen\nlet us go on\nhere") == "Well then let us go on"
    assert opening("x" * 1000) == "x" * OPENING
    assert opening("") == ""


def test_running_text_cut_within_a_sentence_has_no_openings(embedder: Embedder) -> None:
    text = " ".join(DRY).split()
    cut = [" ".join(text[i : i + 17]).rstrip(".") + "," for i in range(0, len(text), 17)]
    asked: list[str] = []

    def embed(text: str) -> np.ndarray:
        asked.append(text)
        return embedder.vector(text)

    scale, dryness = scale_of(embedder), Dryness()
    for part in [*BEGUN, *cut]:
        dryness.read(embedder.vector(part), 0.3, part, scale, embed)
    begun_small = [part for part in cut[1:] if part[0].islower()]
    assert begun_small
    assert not any(part.startswith(opened) for part in begun_small for opened in asked)
    found = scan(transcript(*BEGUN, *(text.lower() for text in DRY)), embedder)
    assert found.alarm is not None, "who writes small letters all the time still begins sentences"


def by_definition(vectors: np.ndarray, news: list[float], emptiness: list[float], scale: Scale) -> list[float]:
    """The signs, each from the whole talk up to its turn. vectors: unit, shape (turns, d)."""
    signs, shared = [], []
    for i in range(len(vectors)):
        if i < 4:
            signs.append(NOT_DRY)
            continue
        near = [vectors[a] @ vectors[b] for a in range(i - 4, i + 1) for b in range(i - 4, a)]
        apart = vectors - vectors[: max(3, i - 6)].mean(axis=0)
        apart = apart / np.linalg.norm(apart, axis=1, keepdims=True)
        shared.append(np.mean([apart[j] @ apart[i] for j in range(max(0, i - 6), i)]))
        first = max(4, i - 4)
        loss = (np.mean(news[4:first]) if first > 4 else 2 / 3) - np.mean(news[first : i + 1])
        close, sharing, empty = (
            scale(float(np.mean(near))),
            np.mean(shared[-3:]),
            np.mean(emptiness[max(0, i - 4) : i + 1]),
        )
        if close < 0.31 or sharing < 0.15 or loss < 0 or empty < 0.25:
            signs.append(NOT_DRY)
        else:
            signs.append(float(np.clip(7.5 * (min(close, 0.51) + sharing + 2 * empty + loss * 2 / 3 - 1.25), -1, 1)))
    return signs


def test_the_sign_is_what_is_documented(embedder: Embedder) -> None:
    scale, counted = scale_of(embedder), 0
    openings_of = ("Tell me about the bill.", "It is late.", "We can ask my sister.", "Go and see.")
    empty = {o: scale(float((scale.emptiness @ embedder.vector(o)).max())) for o in openings_of}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        near = (
            rng.uniform(0.2, 1.2) * np.repeat([0.2, 1.0], [8, 16])[:, None] * rng.normal(size=8)
            + rng.normal(size=8) * 0.4
        )
        vectors = near + rng.normal(size=(24, 8)) * 0.5
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
        news = [float(x) for x in np.repeat([0.7, 0.4], [8, 16]) + rng.uniform(-0.2, 0.2, 24)]
        said = [str(o) for o in rng.choice(openings_of, 24)]
        dryness = Dryness()
        found = [dryness.read(v, n, t, scale, embedder.vector) for v, n, t in zip(vectors, news, said, strict=True)]
        signs = [dry.sign for dry in found]
        # float16 vectors are not quite of length 1
        assert signs == pytest.approx(by_definition(vectors, news, [empty[o] for o in said], scale), abs=2e-3)
        for i in range(4, 24):
            cosines = (vectors[max(0, i - 6) : i] @ vectors[i])[::-1]
            assert found[i].back == 1 + cosines.argmax()
            assert found[i].similarity == pytest.approx(scale(float(cosines.max())), abs=1e-4)
        counted += sum(abs(s) < 1 and s != NOT_DRY for s in signs)
    assert counted > 50, "most signs are at a bound; the test says little"


def test_what_it_asks_for_is_known_before(embedder: Embedder) -> None:
    talks = [transcript(*BEGUN, *DRY), transcript(*BEGUN, *GOING_ON)]
    embedder.encode(to_embed(m for talk in talks for m in talk.turns))
    wanted = openings(talks, embedder)
    assert len(DRY) - 2 <= len(wanted) <= len(BEGUN + DRY)
    fresh = load_embedder(embedder.name)
    assert fresh is not None
    scan_many(talks, fresh)
    kept = len(fresh.cache)
    assert all(fresh.cache.get(text) is not None for text in wanted)
    asked: list[str] = []
    vector = fresh.vector
    fresh.vector = lambda text: asked.append(text) or vector(text)  # type: ignore[method-assign]
    for talk in talks:
        scan(talk, fresh)
    assert set(asked) >= set(wanted)
    assert all(fresh.cache.get(text) is not None for text in asked)
    assert len(fresh.cache) == kept
