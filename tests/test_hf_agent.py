"""The local language model: prompts, context, chat, loading. Most of it runs on tiny random models made here."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2a_ray.agents.chat_prompts import chat, running_text
from a2a_ray.agents.hf.hf_agent import HFAgent
from a2a_ray.agents.hf.hf_source import embedded, missing_weights
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import AgentError, ConfigurationError, ContextLengthError
from a2a_ray.core.message import Message
from a2a_ray.core.registry import agents

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data" / "models"
REAL = ("stories260K", "babyllama105", "babyllama361")
ARCHITECTURES = ("llama", "gpt_neox", "gpt2")
CONTEXT = 160
TEXT = "Once upon a time there was a small dog. It saw the big red sun, and it ran to the park to play with a ball. "
# Refuses what many real templates refuse: roles that do not alternate, beginning with the user.
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{% if not loop.first %}{{ raise_exception('system') }}{% endif %}"
    "{% elif (m.role == 'user') != ((loop.index0 - (messages[0].role == 'system')|int) % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant:{% endif %}"
)


def make_model(folder: Path, architecture: str) -> Path:
    """A tiny random model with a byte-level BPE tokeniser; its weights are large enough to prefer some tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<s>")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
    if architecture == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "tie_word_embeddings": False}
    else:
        sizes["intermediate_size"] = 64
    ids = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.2, "vocab_size": len(tokenizer)}
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes, **ids))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("llama_alone"), "llama")


@pytest.fixture
def chatty(llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "chatty"
    shutil.copytree(llama, folder)
    (folder / "chat_template.jinja").write_text(STRICT)
    return folder


def agent(folder: Path, **options: Any) -> HFAgent:
    options = {"dtype": "float64", "device": "cpu", "threads": 1, "max_new_tokens": 12, **options}
    return HFAgent("ann", str(folder), **options)


def ask(text: str, seed: int = 0, history: tuple[Message, ...] = (), sender: str = "bob", **options: Any) -> Message:
    return Message("c", 7, sender, text, history, seed, options)


def said(sender: str, text: str) -> Message:
    return Message("c", 1, sender, text)


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} in ../shared/data/models")
    return SHARED / name


MIXED = [
    ask(
        TEXT[i % 9 : 9 + 3 * i % 97],
        seed=2**40 + i,
        **({}, {"temperature": 0.0}, {"temperature": 1.5, "top_p": 1.0}, {"max_new_tokens": 3 + i % 20})[i % 4],
    )
    for i in range(64)
]


def test_text_does_not_depend_on_the_batch(folder: Path) -> None:
    ann = agent(folder, max_new_tokens=20)
    alone = [ann.step(message) for message in MIXED]
    plain = [(a.content, a.usage, a.metadata) for a in alone]
    for size in (3, 8, 64):
        together = agent(folder, max_new_tokens=20, batch_size=size).step_batch(MIXED)
        assert [(a.content, a.usage, a.metadata) for a in together if isinstance(a, Message)] == plain
    assert {a.metadata["finish_reason"] for a in alone} == {"stop", "length"}  # rows left the batch at different times
    for message, answer in zip(MIXED, alone, strict=True):
        most = message.options.get("max_new_tokens", 20)
        assert answer.usage["output_tokens"] <= most
        assert (answer.metadata["finish_reason"] == "stop") or answer.usage["output_tokens"] == most


def test_seed_decides(folder: Path) -> None:
    ann = agent(folder)
    texts = [ann.step(ask("Once", seed)).content for seed in (1, 1, 2, 3, 2**63 - 1)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4
    long = str(ann.step(ask("Once", 1, max_new_tokens=20)).content)
    assert long.startswith(str(texts[0]))  # a longer answer begins as the shorter one


def test_greedy_equals_generate(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [TEXT[i : 5 + 4 * i] for i in range(20)]
    answers = agent(folder, temperature=0, max_new_tokens=30).step_batch([ask(text) for text in texts])
    for text, answer in zip(texts, answers, strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=30, pad_token_id=0)[0]
        assert isinstance(answer, Message)
        assert answer.content == tokenizer.decode(expected[inputs.input_ids.shape[1] :], skip_special_tokens=True)
        assert answer.usage["input_tokens"] == inputs.input_ids.shape[1]
        assert answer.usage["output_tokens"] == len(expected) - inputs.input_ids.shape[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([2, 5, 40, 700]),
    temperature=st.floats(0.05, 3),
    top_p=st.floats(0.01, 1),
)
def test_sampled_frequencies(seed: int, size: int, temperature: float, top_p: float) -> None:
    """Uniforms on an even grid must hit each token as often as the warpers of transformers say, to one hit."""
    import torch
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    from a2a_ray.agents.hf.sampler import pick

    count = 5000
    logits = torch.randn(1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    ids = torch.zeros(1, 1, dtype=torch.long)
    warped = TopPLogitsWarper(top_p)(ids, TemperatureLogitsWarper(temperature)(ids, logits))
    expected = torch.softmax(warped, -1)[0] * count
    uniforms = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count
    full = torch.ones(count, 1, dtype=torch.float64)
    drawn = pick(logits.expand(count, -1), uniforms, full * temperature, full * top_p)
    hits = torch.bincount(drawn, minlength=size)
    assert (hits - expected).abs().max() <= 1 + 1e-6
    assert hits[expected == 0].sum() == 0


def test_pick_at_the_edges() -> None:
    import torch

    from a2a_ray.agents.hf.sampler import pick

    nan, inf = float("nan"), float("inf")
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, -inf, 3.0], [nan, 1.0, 0.0], [0.0, inf, 0.0], [0.0, 1.0, -inf]])
    one = torch.ones(5, 1, dtype=torch.float64)
    edge = one * (1 - 2**-53)
    assert pick(logits, edge, one * 0, one).tolist() == [0, 2, -1, -1, 1]
    assert pick(logits, edge, one * 1e-300, one).tolist() == [1, 2, -1, -1, 1]
    assert pick(logits, edge, one, one).tolist() == [2, 2, -1, -1, 1]
    assert pick(logits, one * 0, one, one * 1e-9).tolist() == [0, 2, -1, -1, 1]
    assert pick(logits, edge, one, one * 1e-9)[0] == 1  # both of two equals are in the nucleus


def test_empty_text_is_answered_and_an_empty_answer_kept(folder: Path) -> None:
    import torch

    ann = agent(folder)
    answer = ann.step(ask(""))
    assert answer.usage["input_tokens"] == 1  # the start token
    ann.setup()
    assert ann._loaded is not None
    head = ann._loaded.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()  # all logits equal: greedy takes token 0, which ends the text
    ended = ann.step(ask("Once", temperature=0))
    assert (ended.content, ended.metadata) == ("", {"finish_reason": "stop"})
    assert ended.usage == {"input_tokens": 2, "output_tokens": 1, "requests": 1}


def test_nan_fails_its_row_alone(llama: Path) -> None:
    import torch

    ann = agent(llama)
    ann.setup()
    assert ann._loaded is not None
    (poison,) = ann._loaded.tokenizer("Z").input_ids
    with torch.no_grad():
        ann._loaded.model.get_input_embeddings().weight[poison] = float("nan")
        ann._loaded.model.get_output_embeddings().weight[poison] = 0.0
    good, bad = ask("Once", seed=1), ask("Once upon a time Z")
    first, failed, last = ann.step_batch([good, bad, good])
    assert isinstance(first, Message)
    assert isinstance(last, Message)
    assert first.content == last.content == ann.step(good).content
    assert "NaN or infinite logits in float64" in str(failed)


def test_old_messages_are_dropped_when_the_context_is_full(folder: Path) -> None:
    ann = agent(folder, temperature=0)
    history = tuple(said("bob", f" {i} " + TEXT) for i in range(9))
    full = ann.step(ask("The end.", history=history))
    dropped = full.metadata["dropped_messages"]
    assert 0 < dropped < 9
    assert CONTEXT - 60 < full.usage["input_tokens"] <= CONTEXT - 12  # as much as fits
    kept = ann.step(ask("The end.", history=history[dropped:]))
    assert (kept.content, "dropped_messages" in kept.metadata) == (full.content, False)


def test_context_too_small_fails_its_row_alone(llama: Path) -> None:
    ann = agent(llama, max_new_tokens=100)
    good, bad = ask("Once"), ask(TEXT * 3, history=(said("bob", "x"),))
    first, failed, last = ann.step_batch([good, bad, good])
    assert isinstance(first, Message)
    assert isinstance(last, Message)
    assert first.content == last.content == ann.step(good).content
    assert isinstance(failed, ContextLengthError)
    assert "turn 7" in str(failed)
    assert f"has {CONTEXT}" in str(failed)
    assert "max_new_tokens 100" in str(pickle.loads(pickle.dumps(failed)))
    with pytest.raises(ContextLengthError):
        ann.step(bad)
    assert isinstance(ann.step(ask(TEXT * 3, max_new_tokens=5, temperature=0.0, history=())), Message)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1}, "temperature: -1; expected at least 0"),
        ({"top_p": 0.0}, "top_p: 0.0; expected"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; expected"),
        ({"temprature": 1}, "Did you mean 'temperature'"),
    ],
)
def test_wrong_options_fail_their_row(llama: Path, options: dict[str, Any], sentence: str) -> None:
    (failed,) = agent(llama).step_batch([ask("Once", **options)])
    assert isinstance(failed, AgentError)
    assert sentence in str(failed)


def test_vectors_are_refused(llama: Path) -> None:
    with pytest.raises(AgentError, match="a language model reads text"):
        agent(llama).step(Message("c", 1, "", np.zeros(2)))


def test_running_text() -> None:
    join = running_text
    assert join(["Once upon a ti", "me there was", " a dog.", "It ran.", "\nIt sat"], " ") == (
        "Once upon a time there was a dog. It ran.\nIt sat"
    )
    assert join(["", "a.", "", "b"], "\n") == "a.\nb"
    assert join([], " ") == join(["", ""], " ") == ""


def test_completion_prompt_is_the_running_text(llama: Path) -> None:
    ann = agent(llama)
    history = (said("", "Once upon a ti"), said("ann", "me there was a dog."))
    parts = ann.step(ask("It saw the sun", seed=4, history=history, instructions="A tale:"))
    whole = ann.step(ask("A tale: Once upon a time there was a dog. It saw the sun", seed=4))
    assert parts.content == whole.content
    assert parts.usage == whole.usage


def test_chat_roles() -> None:
    shown = [said("", "Topic."), said("bob", "Hi."), said("ann", "Hello."), said("ann", "Well?"), said("eve", "Yes.")]
    assert chat(shown, "ann", "Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Topic.\n\nHi."},
        {"role": "assistant", "content": "Hello.\n\nWell?"},
        {"role": "user", "content": "Yes."},
    ]
    assert [t["role"] for t in chat(shown[2:], "ann", None)] == ["user", "assistant", "user"]


def test_chat_goes_through_the_template(chatty: Path) -> None:
    ann, plain = agent(chatty, mode="chat", instructions="Be brief."), agent(chatty)
    ann.check()
    history = (said("ann", "Hello."), said("bob", "Hi."), said("eve", "Ho."))
    answer = ann.step(ask("Yes.", seed=3, history=history))
    prompt = "[system:Be brief.][user:][assistant:Hello.][user:Hi.\n\nHo.\n\nYes.][assistant:"
    assert answer.content == plain.step(ask(prompt, seed=3)).content
    other = ann.step(ask("Yes.", seed=3, instructions="Be long."))
    assert other.content == plain.step(ask("[system:Be long.][user:Yes.][assistant:", seed=3)).content


def test_template_without_a_system_role(chatty: Path) -> None:
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (chatty / "chat_template.jinja").write_text(refusal + STRICT)
    answer = agent(chatty, mode="chat", instructions="Be brief.").step(ask("Yes.", seed=3))
    assert answer.content == agent(chatty).step(ask("[user:Be brief.\n\nYes.][assistant:", seed=3)).content
    (chatty / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(AgentError, match="refuses roles user: never"):
        agent(chatty, mode="chat").step(ask("Yes."))


def test_chat_needs_a_template(llama: Path) -> None:
    with pytest.raises(ConfigurationError, match="no chat template; use mode: completion"):
        agent(llama, mode="chat").check()


def test_check_names_what_is_wrong(llama: Path, tmp_path: Path) -> None:
    def wrong(model: object, sentence: str, **options: Any) -> None:
        with pytest.raises(ConfigurationError, match=sentence):
            HFAgent("ann", str(model), **options).check()

    wrong(tmp_path / "nowhere", "no such folder")
    wrong("./nowhere", "no such folder")
    wrong(tmp_path, "no config.json in it")
    shutil.copy(llama / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    wrong(tmp_path, r"no \*.safetensors in it; pickled weights are not loaded")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1-of-2.safetensors").touch()
    wrong(tmp_path, "model-2-of-2.safetensors missing in it")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    wrong(tmp_path, "damaged")
    wrong("tiny-lama", "neither a folder nor an embedded model")
    wrong("owner/name/more", "neither a folder nor a hub id")
    wrong(llama, f"max_new_tokens: {CONTEXT}; the context", max_new_tokens=CONTEXT)
    HFAgent("ann", "owner/name").check()
    agent(llama).check()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("max_new_tokens", 0),
        ("device", "gpu"),
        ("dtype", "int8"),
        ("mode", "talk"),
        ("threads", 0),
        ("batch_size", 0),
    ],
)
def test_constructor_checks(key: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{key}: "):
        HFAgent("ann", "tiny-llama", **{key: value})


def test_built_from_a_specification(llama: Path) -> None:
    built = agents.build({"kind": "hf", "model": str(llama), "temperature": 0, "max_new_tokens": 4}, "ann", name="ann")
    assert built.step(ask("Once")).usage["output_tokens"] == 4
    with pytest.raises(ConfigurationError, match=r"ann\.max_new_token: .*'max_new_tokens'"):
        agents.build({"kind": "hf", "model": "x/y", "max_new_token": 4}, "ann", name="ann")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dtype_is_exact(llama: Path, dtype: str) -> None:
    ann = agent(llama, dtype=dtype)
    assert isinstance(ann.step(ask("Once")).content, str)
    assert ann._loaded is not None
    assert {str(p.dtype) for p in ann._loaded.model.parameters()} == {f"torch.{dtype}"}


def test_a_model_with_holes_is_refused(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "holes")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AgentError, match=r"1 weights missing, model\.layers\.1\.mlp\.up_proj"):
        agent(folder).setup()
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(AgentError, match="could not be loaded on cpu"):
        agent(folder).setup()


SETUP = """
import sys
from a2a_ray.agents.hf.hf_agent import HFAgent
agent = HFAgent("ann", sys.argv[1], device="cpu")
agent.check()
assert not {"torch", "transformers"} & set(sys.modules), "check() must be cheap"
try:
    agent.setup()
except Exception as error:
    print(type(error).__name__, error)
"""


def loaded_elsewhere(model: str, home: Path, **environment: str) -> tuple[str, str]:
    """Standard output and error of a fresh process that loads the model, with an empty hub cache."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", SETUP, model],
        env={**clean, "HF_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, done.stderr


class Gate(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for a gated model."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_hub_failures_are_one_sentence(tmp_path: Path) -> None:
    out, err = loaded_elsewhere("owner/name", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert out.startswith(
        "AgentError model 'owner/name' is not in the local cache, and http://127.0.0.1:9 cannot be reached"
    )
    assert (out.count("\n"), err) == (1, "")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        out, err = loaded_elsewhere("owner/name", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert out.startswith("AgentError model 'owner/name' is gated: accept its terms")
    assert err == ""


def test_a_cached_hub_model_needs_no_network_and_prints_nothing(llama: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(llama, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert loaded_elsewhere("owner/name", tmp_path, **dead) == ("", "")
    (repo / "snapshots" / commit / "model.safetensors").unlink()  # half of a download
    out, _ = loaded_elsewhere("owner/name", tmp_path, **dead)
    assert "AgentError" in out
    assert missing_weights(repo / "snapshots" / commit) in out


@pytest.mark.parametrize("name", REAL)
def test_real_models_answer(name: str) -> None:
    folder = real(name)
    ann = HFAgent("ann", str(folder), dtype="float64", device="cpu", threads=1)
    messages = [
        ask(text, seed) for seed, text in enumerate(["Once upon a time", "", "The dog saw Tom", "Lily said"] * 2)
    ]
    together = ann.step_batch(messages)
    assert [a.content for a in together if isinstance(a, Message)] == [ann.step(m).content for m in messages]
    words = str(ann.step(ask("Once upon a time, there was a little", temperature=0)).content)
    assert any(word in words for word in ("girl", "boy"))


@pytest.mark.parametrize("name", REAL)
def test_real_models_greedy_equals_generate(name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = real(name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=50)[0]
    answer = HFAgent("ann", str(folder), temperature=0, device="cpu").step(ask("Once upon a time"))
    # Prompt and answer put together are the text that the model wrote: no space is lost at the seam.
    assert "Once upon a time" + str(answer.content) == tokenizer.decode(whole, skip_special_tokens=True)


def test_two_real_models_talk() -> None:
    ann = HFAgent("ann", str(real("stories260K")), device="cpu")
    bob = HFAgent("bob", str(real("babyllama105")), device="cpu")
    runs = [Conversation([ann, bob], opening="Once upon a time", max_rounds=2, seed=4).run() for _ in range(2)]
    first, second = ([turn.content for turn in run.turns] for run in runs)
    assert first == second
    assert len(first) == 4


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-neox"])
def test_embedded_models_answer(name: str) -> None:
    if name not in embedded():
        pytest.skip(f"{name} has not been trained: make tiny-models")
    ann = HFAgent("ann", name, device="cpu")
    ann.check()
    answer = ann.step(ask("This module provides", seed=1))
    assert answer.usage["output_tokens"] == 50
    assert len(str(answer.content).split()) > 5
