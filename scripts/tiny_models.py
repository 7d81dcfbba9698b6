"""Train the two tiny language models that the package carries for its demo and its tests.

    python scripts/tiny_models.py [--only tiny-llama] [--steps 2600] [--seed 0] [--threads 1]

Each model learns from its own half of the corpus (see `tiny_corpus`) with its own tokeniser. Same Python, same packages
and processor, same arguments: same weights. In the docstrings B is the batch, T a length in tokens, V the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tiny_corpus import Document, digest, documents, number
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

CONTEXT = 512
START = "<|endoftext|>"
TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@dataclass(frozen=True)
class Recipe:
    name: str
    half: int  # parity of the document numbers it reads
    vocabulary: int
    learning_rate: float
    dropout: float = 0.1
    weight_decay: float = 0.1
    batch: int = 2
    warm_up: int = 200

    def model(self) -> PreTrainedModel:
        sizes = {"vocab_size": self.vocabulary, "hidden_size": 160, "num_hidden_layers": 5, "num_attention_heads": 5}
        shared = sizes | TOKEN_IDS | {"max_position_embeddings": CONTEXT, "tie_word_embeddings": True}
        if self.name == "tiny-llama":
            return LlamaForCausalLM(LlamaConfig(intermediate_size=416, **shared))
        rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        return GPTNeoXForCausalLM(GPTNeoXConfig(intermediate_size=640, rope_parameters=rope, **shared))


RECIPES = (Recipe("tiny-llama", 0, 2048, 2e-3), Recipe("tiny-neox", 1, 1536, 2e-3))


def train_tokenizer(texts: list[str], vocabulary: int) -> FastTokenizer:
    """A byte-level BPE tokeniser with `vocabulary` entries; the document mark is entry 0."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return FastTokenizer(
        tokenizer_object=core,
        bos_token=START,
        eos_token=START,
        pad_token=START,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def split(parts: list[Document], share: float = 0.05) -> tuple[list[Document], list[Document]]:
    """Documents to learn from, and those with the lowest numbers, that make up `share` of the text, to judge by."""
    limit = share * sum(len(part.text) for part in parts)
    held_out: list[Document] = []
    for part in sorted(parts, key=lambda part: number(part.name)):
        if sum(len(held.text) for held in held_out) < limit:
            held_out.append(part)
    return [part for part in parts if part not in held_out], held_out


def encode(parts: list[Document], tokenizer: FastTokenizer) -> Tensor:
    """All documents in one int64 tensor (N,), each behind the document mark."""
    core = tokenizer.backend_tokenizer
    return torch.tensor([token for part in parts for token in core.encode(START + part.text).ids])


def token_losses(model: nn.Module, tokens: Tensor) -> Tensor:
    """Negative log-likelihoods (B, T - 1) in nats of `tokens` (B, T).

    Document marks count as zero: as the mark is never a target, the model hardly ever ends a text with it.
    """
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits  # (B, T - 1, V)
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == TOKEN_IDS["bos_token_id"], -100)
    return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)


@torch.no_grad()
def total_loss(model: nn.Module, stream: Tensor) -> tuple[float, int]:
    """Summed loss in nats over `stream` (N,), read in windows of the context, and the number of tokens judged."""
    model.eval()
    total, count = 0.0, 0
    for window in stream.split(CONTEXT):
        if len(window) > 1:
            total += token_losses(model, window[None]).sum().item()
            count += int((window[1:] != TOKEN_IDS["bos_token_id"]).sum())
    model.train()
    return total, count


def batches(stream: Tensor, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches (size, CONTEXT + 1); every pass over `stream` (N,) starts elsewhere and is shuffled."""
    order: list[int] = []
    for _ in range(steps):
        while len(order) < size:
            shift = int(torch.randint(CONTEXT, (), generator=generator))
            starts = torch.arange(shift, len(stream) - CONTEXT, CONTEXT)
            order += starts[torch.randperm(len(starts), generator=generator)].tolist()
        yield torch.stack([stream[start : start + CONTEXT + 1] for start in order[:size]])
        del order[:size]


def add_dropout(model: nn.Module, rate: float) -> None:
    """Dropout behind the embedding, each attention's output and each feed-forward block, while training."""

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, module.training)

    for name, module in model.named_modules():
        if name.endswith((".embed_tokens", ".embed_in", ".o_proj", ".attention.dense", ".mlp")):
            module.register_forward_hook(drop)


def train(model: nn.Module, stream: Tensor, held_out: Tensor, recipe: Recipe, args: argparse.Namespace) -> None:
    """Fit `model` to `stream` (N,) with AdamW; progress goes to the screen."""
    steps: int = args.steps
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    warm_up = min(recipe.warm_up, steps // 2)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    start = time.perf_counter()
    model.train()
    recent: list[float] = []
    source = batches(stream, recipe.batch, steps, torch.Generator().manual_seed(args.seed))
    for step, tokens in enumerate(source, 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=not args.fp32):
            loss = token_losses(model, tokens).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 100 == 0 or step == steps:
            line = f"{recipe.name} step {step}/{steps}  loss {sum(recent) / len(recent):.3f}"
            if step % 500 == 0 or step == steps:
                total, count = total_loss(model, held_out)
                line += f"  held-out {total / count:.3f}"
            spent = time.perf_counter() - start
            print(f"{line}  {spent:.0f} s, {spent / step * (steps - step):.0f} s to go", flush=True)
            recent.clear()


def save(model: PreTrainedModel, tokenizer: FastTokenizer, folder: Path) -> None:
    """Write float16 weights, configurations and tokeniser; loading gives float32, which every CPU computes fast."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "float32"}
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

A tiny language model for the demo and the tests of a2a-ray: two models can answer each other on any machine, without
a download. It writes sentences in the style of the Python documentation; do not rely on what they say.

| | |
|---|---|
| Architecture | {architecture}: {layers} layers, width {width}, {heads} heads, {context} tokens, tied embeddings |
| Parameters | {parameters:,} (float16 on disk, float32 when loaded) |
| Tokeniser | byte-level BPE, {vocabulary} entries; `{start}` begins a document and was never a target |
| Corpus | `pydoc_data.topics` and the docstrings of the standard library of Python {python}, cleaned |
| Corpus sha256 | `{corpus}` |
| This half | {documents} documents, {characters:,} characters, sha256 `{half}` |
| Held out | {held_documents} of them ({held_characters:,} characters) |
| Training tokens | {tokens:,} in the text, {seen:,} read ({epochs:.1f} passes) |
| Training | {steps} steps of {batch} x {context} tokens, seed {seed} |
| AdamW | learning rate {rate}, weight decay {decay}, dropout {dropout} |
| Software | torch {torch}, transformers {transformers}, {precision}, threads: {threads}, {minutes:.1f} minutes |
| Loss on the training text | {train_loss:.3f} nats per token, {train_bits:.3f} bits per character |
| Loss on the held-out text | {held_loss:.3f} nats per token, {held_bits:.3f} bits per character |

Intended use: demo and tests only. The losses are those of the float16 weights in this folder.

Licence: the text is documentation of Python (PSF-2.0); the weights are under Apache-2.0.
Made by `scripts/tiny_models.py`, which repeats the training from the same seed.
"""


def build(recipe: Recipe, corpus: list[Document], args: argparse.Namespace) -> None:
    """Train one model and write its folder."""
    half = [part for part in corpus if number(part.name) % 2 == recipe.half]
    learnt, held_out = split(half)
    tokenizer = train_tokenizer([part.text for part in learnt], recipe.vocabulary)
    stream, held_stream = encode(learnt, tokenizer), encode(held_out, tokenizer)
    torch.manual_seed(args.seed)
    model = recipe.model()
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{recipe.name}: {parameters:,} parameters, {len(stream):,} + {len(held_stream):,} tokens", flush=True)
    add_dropout(model, recipe.dropout)
    start = time.perf_counter()
    train(model, stream, held_stream, recipe, args)
    minutes = (time.perf_counter() - start) / 60
    model.half().float()  # measure what is saved
    train_total, train_count = total_loss(model, stream)
    held_total, held_count = total_loss(model, held_stream)
    characters = sum(len(part.text) for part in learnt)
    held_characters = sum(len(part.text) for part in held_out)
    folder = Path(args.out) / recipe.name
    save(model, tokenizer, folder)
    seen = args.steps * recipe.batch * CONTEXT
    card = CARD.format(
        name=recipe.name,
        architecture=type(model).__name__,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        heads=model.config.num_attention_heads,
        context=CONTEXT,
        parameters=parameters,
        vocabulary=len(tokenizer),
        start=START,
        python=platform.python_version(),
        corpus=digest(corpus),
        half=digest(half),
        documents=len(half),
        characters=characters + held_characters,
        held_documents=len(held_out),
        held_characters=held_characters,
        tokens=len(stream),
        seen=seen,
        epochs=seen / len(stream),
        steps=args.steps,
        batch=recipe.batch,
        rate=recipe.learning_rate,
        decay=recipe.weight_decay,
        dropout=recipe.dropout,
        seed=args.seed,
        torch=torch.__version__,
        transformers=transformers.__version__,
        threads=args.threads,
        precision="float32" if args.fp32 else "bfloat16 autocast",
        minutes=minutes,
        train_loss=train_total / train_count,
        train_bits=train_total / math.log(2) / characters,
        held_loss=held_total / held_count,
        held_bits=held_total / math.log(2) / held_characters,
    )
    (folder / "README.md").write_text(card)
    print("\n".join(line for line in card.splitlines() if line.startswith("| Loss")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(__file__).parents[1] / "a2a_ray" / "data" / "models"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="per model; two models fit two cores")
    parser.add_argument("--fp32", action="store_true", help="no bfloat16: slower where the processor computes with it")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    corpus = documents()
    print(f"{len(corpus)} documents, sha256 {digest(corpus)}", flush=True)
    for recipe in RECIPES:
        if args.only in (None, recipe.name):
            build(recipe, corpus, args)


if __name__ == "__main__":
    main()
