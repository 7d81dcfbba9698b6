"""The grade of the loop detector with an embedder: what is said again in other words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from a2a_ray.analysis.loops import EMBEDDED_CHARACTERS, LoopDetector, scan, scan_many, texts_to_embed
from a2a_ray.analysis.loops.meaning import repetition
from a2a_ray.analysis.loops.similarity_scale import similarity_scale
from a2a_ray.analysis.text.embedding import Embedder, load_embedder
from tests.strategies import random_talk
from tests.talks import message, transcript

AGREED = [
    "Absolutely! When team members feel heard, they are more willing to share ideas. It creates psychological safety.",
    "I completely agree. Psychological safety is so important, because people who feel understood share more openly.",
    "Exactly! By fostering empathy and understanding, we build teams in which everybody feels valued and heard.",
    "Well said! A culture of mutual understanding truly helps teams, since everyone feels respected and valued.",
    "I couldn't agree more. When people feel respected and valued, trust grows, and the whole team benefits.",
    "Yes, indeed! Trust and open communication are what makes a team strong, and empathy makes them possible.",
    "That's so true. Empathy strengthens trust, and trust strengthens teams in which all members feel valued.",
    "Beautifully put! Understanding one another creates teams in which each person feels appreciated and heard.",
    "Absolutely. A team culture of empathy and respect lets people feel valued and share their ideas openly.",
    "I wholeheartedly agree. When we listen with empathy, people feel heard, and teams grow in trust and respect.",
    "Precisely! Listening with empathy makes everyone in the team feel valued, and so trust can grow.",
    "Indeed! Valuing each person and listening with empathy is what makes teams trust one another.",
    "So true! Teams in which people listen with empathy trust each other, and everyone feels valued.",
    "I agree. Feeling heard and valued is what builds the trust that a strong team needs.",
]


def test_likeness_counts_in_words_that_were_said() -> None:
    assert repetition(0.8, news=0.1, copied=0.0) == 1
    assert repetition(0.8, news=0.7, copied=0.0) < -0.5, "new content in a conversation about one subject"
    assert repetition(0.8, news=0.1, copied=0.5) < 0, "common wording explains it"
    assert repetition(0.4, news=0.0, copied=0.0) < 0


def test_the_scale_of_an_embedder(embedder: Embedder) -> None:
    scale = similarity_scale(embedder)
    same = embedder.encode(["The cat sleeps on the sofa.", "On the sofa there is a sleeping cat."])
    other = embedder.encode(["Interest rates rose again in May."])
    assert scale(float(same[0] @ same[1])) > 0.9
    assert abs(scale(float(same[0] @ other[0]))) < 0.2


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("The ferry left at dawn with eleven passengers on deck.", True),
        ("def area(width: float, height: float) -> float: return width * height", True),
        ("Die Fähre legte im Morgengrauen mit elf Fahrgästen ab.", True),
        ("渡轮在黎明时分载着十一名乘客离开了港口。", False),
        ("페리는 새벽에 승객 열한 명을 태우고 떠났다.", False),
        ("কেমন আছেন আপনি আজ সকালে", False),
    ],
)
def test_which_texts_an_embedder_can_read(embedder: Embedder, text: str, known: bool) -> None:
    assert similarity_scale(embedder).reads(text) is known


def test_a_language_that_the_embedder_cannot_read_is_left_to_the_words(embedder: Embedder) -> None:
    said = (
        "페리는 새벽에 떠났다. 등대는 어두웠다. 안개가 짙어졌다. 소년은 초를 셌다. 요리사는 국을 나눠 주었다."
        " 정오에 종이 울렸다. 엔진이 멈췄다. 부표가 떠 있었다. 선장은 수심을 쟀다. 모래가 나왔다. 물이 차올랐다."
        " 저녁에 항구가 보였다. 오렌지를 먼저 내렸다."
    )
    assert scan(transcript(*said.split(". ")), embedder).loop is None


def static_model(folder: Path, embedder: Embedder) -> Path:
    """A static sentence-transformers model: the word vectors of the default model, averaged."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    transformer: Any = embedder._loaded()[0]
    weights = transformer.auto_model.get_input_embeddings().weight.detach().numpy()
    tokenizer = transformer.tokenizer.backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(folder))
    return folder


def test_a_static_model_as_the_fast_choice(tmp_path: Path, embedder: Embedder) -> None:
    fast = load_embedder(str(static_model(tmp_path / "static", embedder)))
    assert fast is not None
    scale, default = similarity_scale(fast), similarity_scale(embedder)
    assert scale.unrelated > default.unrelated + 0.05, "a cosine means less with word vectors"
    talk = transcript("What makes a team work well?", *AGREED)
    assert scan(talk, fast).loop is not None
    rng = np.random.default_rng(2)
    assert scan(transcript(*random_talk(rng, 30)), fast).loop is None


def test_agreement_in_ever_new_words(embedder: Embedder) -> None:
    talk = transcript("What makes a team work well?", *AGREED)
    found = scan(talk, embedder)
    assert found.loop is not None
    assert found.loop.kind == "semantic"
    assert 2 <= found.loop.onset_turn <= 8
    assert scan(talk).loop is None


def test_the_embedder_pickles_by_name(embedder: Embedder) -> None:
    detector = LoopDetector(embedder)
    for i, text in enumerate(AGREED):
        detector.update(message(i + 1, text))
    state = pickle.dumps(detector)
    assert len(state) <= 64 * 1024
    copy = pickle.loads(state)
    assert copy.update(message(99, AGREED[0])) == detector.update(message(99, AGREED[0]))


def test_many_are_scanned_as_one_is(embedder: Embedder) -> None:
    talks = [transcript("What makes a team work well?", *AGREED[:k]) for k in (3, 7, 12)]
    together = scan_many(talks, embedder)
    assert together == [scan(t, embedder) for t in talks]
    done: list[tuple[int, int]] = []
    assert scan_many(talks, progress=lambda *n: done.append(n)) == [scan(t) for t in talks]
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_what_is_embedded() -> None:
    messages = [message(1, "a" * 9000), message(2, " "), message(3, "ls", kind="action"), message(4, "x", kind="nudge")]
    assert texts_to_embed(messages, "self_talk") == ["a" * EMBEDDED_CHARACTERS]
    assert texts_to_embed(messages) == [], "an action: meaning does not count in conversations with tools"
    assert texts_to_embed(transcript(*AGREED).turns) == AGREED


POEM = """Shall we write a poem together about the coast? I begin: Grey gulls lean into the wind above the pier.
A fisherman mends what the night has torn, counting the knots he learned from his father's hand.
Behind him the cannery sleeps with broken windows, and ivy signs its name on the brick.
Children dare each other to touch the cold rail where the trains no longer stop.
The moon pours silver on the waiting waves, and the tide breathes softly on the shore.
Silver waves whisper beneath the moon, and the shore breathes with the turning tide.
The tide whispers its silver secret to the shore, while the moon breathes on the waves.
Soft moonlight, silver whisper, the waves turn home, and the shore remembers the tide.
The shore remembers, the moon whispers, and silver tides breathe softly over the waves.
Breathe, silver tide, beneath the whispering moon; the waves come home to the shore.
Home to the shore the waves return, silver and soft, where the moon whispers to the tide.
Soft on the shore the silver tide returns, and the moon whispers to the waves at home.
Whisper, moon, and let the silver waves breathe with the soft tide on the shore of home.""".splitlines()
LESSON = """Can you teach me how tides work? I know only that the moon has something to do with it.
The moon pulls more strongly on the near side of the earth than on the far side. That stretches the ocean.
Why are there two bulges? I would have expected one, below the moon.
Because the earth itself is pulled as well. The water on the far side is pulled least, so it lags behind.
So a place passes both bulges in a day and has two high tides?
Nearly: the moon moves on meanwhile, so two high tides take 24 hours and 50 minutes, not 24.
And the sun? It is far heavier than the moon.
Heavier, yes, but the stretching falls with the cube of the distance, so the sun does a bit less than half.
Then at full moon both act together?
At full moon and at new moon: spring tides. At the quarters they act across each other, which gives neap tides.
Where I grew up there was only one high tide per day, though.
That can happen where the moon stands far from the equator, or where a basin resonates with the day.""".splitlines()


def test_the_same_content_in_the_words_that_were_said(embedder: Embedder) -> None:
    found = scan(transcript(*POEM), embedder)
    assert found.loop is not None
    assert found.loop.alarm_turn <= 13
    assert found.loop is not None
    assert found.loop.kind == "semantic"
    assert 6 <= found.loop.onset_turn <= 8


def test_talk_about_one_subject_goes_on(embedder: Embedder) -> None:
    assert scan(transcript(*LESSON), embedder).highest < 0.5


def test_who_asks_again_after_news_asks_something_new(embedder: Embedder) -> None:
    asked = [
        "Please look for another source that lists the winners and the dates when they were born.",
        "Search for a different page with the winners and their dates of birth.",
        "Find some other list of the winners together with the dates on which they were born.",
        "Please try one more page that gives the dates of birth of all winners.",
        "Look for a further source with the list of winners and when each was born.",
        "Search again for a page that lists all winners with their dates of birth.",
        "Please find another page with the birth dates of the winners.",
        "Try a different source for the list of winners and their dates of birth.",
    ]
    news = random_talk(np.random.default_rng(4), 80, 40)

    def alarm(replies: list[str]) -> int | None:
        return scan(transcript(*(t for pair in zip(asked, replies, strict=True) for t in pair)), embedder).loop

    assert alarm([" ".join(news[10 * i : 10 * i + 10]) for i in range(8)]) is None
    assert alarm(["I could not open it."] * 8) is not None
