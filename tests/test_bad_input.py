"""What people get wrong, and what breaks while a run is under way: one clear sentence, never a traceback; nothing
that was acknowledged is lost, nothing secret is kept."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from a2a_ray.core.conversation import Conversation
from a2a_ray.core.message import Message
from a2a_ray.core.transcript import Transcript
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.run_experiment import run_experiment
from a2a_ray.store.run import open_run
from a2a_ray.store.run_folder import run_names
from tests.command_line import Done, call, finish, start, write_spec

ECHO = {"name": "ann", "kind": "echo"}
HF = {"name": "ann", "kind": "hf", "model": "tiny-llama"}
OPENAI = {"name": "ann", "kind": "openai", "model": "m"}
SECRET = "sk-planted-7f3a9c51"


class Steady:
    """Says something that follows from the seed alone; `answer` says what goes wrong from turn 2 on.

    After turn 6 it waits for the file `gate`, if it has one: so a run can be disturbed there at any time.
    """

    placement = "worker"

    def __init__(self, name: str, answer: str = "", gate: str = "", size: int = 20) -> None:
        self.name, self.answer, self.gate, self.size = name, answer, gate, size

    async def step(self, message: Message) -> Any:
        while self.gate and message.turn > 6 and not Path(self.gate).exists():
            await asyncio.sleep(0.05)
        content: Any = message.content
        match self.answer if message.turn > 1 else "":
            case "raise":
                raise ZeroDivisionError("by zero")
            case "none":
                return None
            case "shape":
                return message.reply(np.zeros(2), self.name)
            case "nan":
                return message.reply(content * np.nan, self.name)
        if isinstance(content, str):
            content = np.random.default_rng(message.seed).bytes(self.size).hex()
        return message.reply(content, self.name)


STEADY = "tests.test_bad_input:Steady"
MARK = "A2A_TEST_MARK"
"""In the environment of a run that is to be interrupted, and of all its processes."""


def one_sentence(done: Done) -> str:
    """That a command ended as one that was given bad input must; its sentence."""
    assert done.status == 2, done.err
    assert done.out == ""
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1, done.err
    return done.err


def said(run: str | Path) -> dict[str, Any]:
    """Everything but time stamps."""
    return {t.id: in_short(t) for t in open_run(run).transcripts()}


def in_short(transcript: Transcript) -> list[Any]:
    return [(m.turn, m.sender, m.content, m.seed) for m in transcript] + [transcript.status, transcript.reason]


# --- bad input: status 2, nothing started ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"agents": [{"name": "a", "kind": "ech"}]}, "agents.0.kind: unknown agent kind 'ech'. Did you mean 'echo'?"),
        ({"agents": [{"name": "a", "kind": "no_such:Agent"}]}, "cannot import 'no_such'"),
        ({"agents": [{"name": "a", "kind": "tests.test_cli:Agent"}]}, "has no 'Agent'"),
        ({"agents": [{"kind": "echo"}]}, "key 'agents.0.name' is missing"),
        ({"agents": [{"name": "a b", "kind": "echo"}]}, "agent name 'a b'; expected a Python identifier"),
        ({"agents": [ECHO, ECHO]}, "agent name 'ann' is given twice"),
        ({"agents": ECHO}, "agents: {'name': 'ann', 'kind': 'echo'}; expected a list"),
        ({"agents": []}, "agents: []; expected at least 1"),
        ({"agents": [{**ECHO, "prefx": "x"}]}, "unknown key 'prefx'. Did you mean 'prefix'?"),
        ({"agents": [{**ECHO, "resources": {"replicas": 0}}]}, "agents.0.resources.replicas: 0; expected at least 1"),
        (
            {"agents": [{**ECHO, "resources": {"max_batch": 1}}]},
            "Did you mean 'max_batch_size'?",
        ),
        ({"agents": [{**ECHO, "limits": {"timout": 1}}]}, "agents.0.limits.timout: unknown key 'timout'. Did you mean"),
        (
            {"agents": [{**ECHO, "replicas": 2}]},
            "agents.0.replicas: not a setting of this kind of agent; put it under",
        ),
        (
            {"agents": [{**ECHO, "endpoint": "x"}]},
            "put it under limits: as rate_limit_group (limits: {rate_",
        ),
        ({"shared": True}, "unknown key 'shared'. Did you mean 'shared_storage'?"),
        ({"agents": [{**ECHO, "placement": "gpu"}]}, "agents.0.placement: 'gpu'; expected 'worker' or 'actor'"),
        ({"agents": [{**ECHO, "price": {"inpt": 1}}]}, "unknown key 'inpt'. Did you mean 'input'?"),
        ({"agents": [{**HF, "model": "/no/such"}]}, "agents.0: model '/no/such': no such folder"),
        ({"agents": [{**HF, "model": "tiny-lama"}]}, "an embedded model (tiny-llama, tiny-neox)"),
        ({"agents": [{**HF, "model": "./bare"}]}, "agents.0: model './bare': no *.safetensors in it"),
        ({"agents": [{**HF, "temperature": "hot"}]}, "agents.0.temperature: 'hot'; expected a number"),
        ({"agents": [{**HF, "max_new_tokens": 512}]}, "max_new_tokens: 512; the context of 'tiny-llama' has 512"),
        ({"agents": [OPENAI]}, "agents.0: api_key_env: 'OPENAI_API_KEY'; this environment variable is not set"),
        ({"agents": [{**OPENAI, "base_url": "localhost:1"}]}, "base_url: 'localhost:1'; expected an address such as"),
        ({"max_roundz": 3}, "unknown key 'max_roundz'. Did you mean 'max_rounds'?"),
        ({"max_rounds": "three"}, "max_rounds: 'three'; expected a whole number"),
        ({"max_rounds": 0}, "max_rounds: 0; expected at least 1"),
        ({"max_rounds": None, "max_turns": 0}, "max_turns: 0; expected at least 1"),
        ({"max_turns": 4}, "max_rounds: 3 and max_turns: 4; give one of them"),
        ({"name": "my run"}, "name: 'my run'; expected letters"),
        ({"protocol": "round_robin"}, "unknown protocol kind 'round_robin'. There is: adaptive, alternating"),
        ({"protocol": {"kind": "alternating", "context": "lst"}}, "context: 'lst'; expected last, all"),
        ({"openings": []}, "openings: []; expected at least one"),
        ({"openings": [1]}, "openings.0: 1; expected text or a list"),
        ({"openings": "defualt"}, "openings: 'defualt'; expected a list or 'default'"),
        ({"openings": {"file": "none.txt"}}, "none.txt: No such file or directory"),
        ({"observers": ["loop"]}, "unknown observer kind 'loop'. Did you mean 'loops'?"),
        ({"termination": ["max_turn"]}, "unknown termination kind 'max_turn'. Did you mean 'max_turns'?"),
        ({"sweep": {"agents.*.prefx": ["x"]}}, "unknown key 'prefx'. Did you mean 'prefix'?"),
    ],
)
def test_a_wrong_specification_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: dict[str, Any],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    path = write_spec(tmp_path, **spec)
    error = one_sentence(call(capsys, "run", path))
    assert str(path) in error
    assert sentence in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("agents: [{name: a\n  b: ]\n", "spec.yaml, line 2, column 4: not YAML: expected ',' or '}', but got ':'"),
        ("agents:\n\t- x\n", "line 2, column 1: not YAML: found character '\\t'"),
        (b"\xff\xfe\x00", "spec.yaml: not YAML: "),
        ("", "spec.yaml: empty; expected keys such as agents and max_rounds (a2a-ray init writes an example)"),
        ("just text\n", "str 'just text'; expected keys such as agents"),
        ("max_rounds: 3\n", "key 'agents' is missing"),
    ],
)
def test_a_file_that_is_no_specification(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sentence in one_sentence(call(capsys, "run", path))


@pytest.mark.parametrize(
    "agent",
    [
        {**OPENAI, "api_key": SECRET},
        {**OPENAI, "api_key_env": SECRET},
        {**OPENAI, "extra_body": {"api_key": SECRET}},
        {**OPENAI, "extra_body": {"headers": {"Authorization": f"Bearer {SECRET}"}}},
        {**OPENAI, "base_url": f"http://user:{SECRET}@127.0.0.1/v1"},
        {**ECHO, "resources": {"runtime_env": {"env_vars": {"OPENAI_API_KEY": SECRET, "HF_TOKEN": SECRET}}}},
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_key_in_the_specification_is_refused_and_not_repeated(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: Any, dry: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    path = write_spec(tmp_path, agents=[agent])
    assert SECRET not in one_sentence(call(capsys, "run", path, *["--dry-run"] * dry))
    swept = write_spec(tmp_path, sweep={f"agents.*.{key}": [value] for key, value in agent.items() if key != "name"})
    assert SECRET not in one_sentence(call(capsys, "run", swept, *["--dry-run"] * dry))
    assert [p.name for p in tmp_path.iterdir()] == ["spec.yaml"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rum", "spec.yaml"], "No such command 'rum'. Did you mean 'run'"),
        (["run", "spec.yaml", "--worker", "2"], "No such option: --worker"),
        (["run", "spec.yaml", "--workers", "0"], "'--workers': expected at least 1"),
        (["run", "spec.yaml", "--workers", "two"], "'--workers': expected a whole number"),
        (["run"], "Missing argument 'SPEC.yaml' (help: "),
        (["run", "none.yaml"], "none.yaml: No such file or directory; expected a YAML specification"),
        (["run", "folder"], "folder: Is a directory"),
        (["run", "spec.yaml", "--storage", "file"], "storage: file: cannot write there: "),
        (["run", "spec.yaml", "--storage", "file/inside"], "storage: file/inside: cannot write there: "),
        (["run", "spec.yaml", "--storage", "s4://x/y"], "storage: s4://x/y: cannot write there: Unrecognized"),
        (["resume", "folder"], "folder: not a run (no readable manifest.json in it"),
        (["resume", "none"], "none: there is no such run or file"),
        (["resume", "fake"], "fake: not a run (no readable manifest.json in it: it is no manifest of a run)"),
        (["export", "talks.jsonl"], "talks.jsonl: not a run"),
        (["show", "none.jsonl"], "none.jsonl: there is no such run or file"),
        (["show", "talks.jsonl", "c9"], "talks.jsonl: unknown conversation 'c9'. There is: c1."),
        (["show", "talks.jsonl", "--limit", "-1"], "'--limit': expected at least 0"),
        (["analyze", "file"], "file: no conversation in it (line 1: not JSON, or cut off: "),
        (["analyze", "empty"], "empty: no conversation in it (it is empty); expected one JSON object a line"),
        (["analyze", "talks.jsonl", "--embedder", "./none"], "embedder './none'"),
        (["report", "talks.jsonl", "-o", "none/report.html"], "folder none does not exist; create it"),
        (["report", "talks.jsonl", "-o", "folder"], "folder: is a folder"),
        (["export", "none", "-o", "none/x.jsonl"], "folder none does not exist"),
        (["init", "none/x.yaml"], "folder none does not exist"),
        (["init", "file"], "file: already exists; choose another name, or overwrite it with --force"),
    ],
)
def test_a_wrong_command_is_told_in_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_spec(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "manifest.json").write_text("{}")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "empty").touch()
    (tmp_path / "talks.jsonl").write_text('{"id": "c1", "turns": [{"speaker": "ann", "text": "Hello."}]}\n')
    before = sorted(tmp_path.rglob("*"))
    assert sentence in one_sentence(call(capsys, *arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_conversation_of_a_run(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = {"agents": [ECHO], "openings": ["x", "y"], "max_rounds": 2}
    run = run_experiment(spec, storage=tmp_path, workers=1, progress=False)
    assert "unknown conversation '9'. There is: 0-0-0, 0-1-0." in one_sentence(call(capsys, "show", run.path, "9"))
    assert f"There is: {run.path}." in one_sentence(call(capsys, "report", tmp_path, "-o", tmp_path / "r.html"))


def test_a_gpu_that_is_not_there(ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    spec = write_spec(tmp_path, agents=[{**ECHO, "placement": "actor", "resources": {"num_gpus": 64}}])
    error = one_sentence(call(capsys, "run", spec, "--storage", tmp_path / "runs"))
    assert "agent 'ann'" in error
    assert "64 more GPU (0 in the cluster" in error
    assert "request less" in error
    assert run_names(tmp_path / "runs") == []


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    write_spec(tmp_path)
    done = finish(start("run", "spec.yaml", "--address", "127.0.0.1:9", cwd=tmp_path))
    assert "127.0.0.1:9" in one_sentence(done)
    assert run_names(tmp_path / "runs") == []


LINES = """{"id": "whole", "turns": [{"speaker": "ann", "text": "Hello."}, {"speaker": "bob", "text": "Yes."}]}
[1, 2]
{"id": "no turns"}

{"id": "bad turn", "turns": [{"speaker": "ann", "text": 5}]}
{"id": "last", "turns": [{"speaker": "ann", "text": "Bye."}]}
{"id": "cut", "turns": [{"speaker": "ann", "te"""


def test_damaged_lines_are_told_and_the_rest_is_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_bytes(LINES.encode() + b"\n\xff\xfe\n")
    for arguments in (["analyze", file, "--embedder", "none", "--json"], ["show", file]):
        status, out, err = call(capsys, *arguments)
        assert status == 0
        assert [line.split(":")[0] for line in err.splitlines()] == [f"{file}, line {n}" for n in (2, 3, 5, 7, 8)]
        assert "whole" in out
        assert "last" in out
        if "--json" in arguments:
            assert json.loads(out)["problems"] == err.splitlines()


# --- faults of single conversations: status 1 -----------------------------------------------------------------------


def test_faults_are_listed_and_the_conversations_kept(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bob = {"name": "bob", "kind": STEADY}

    def cell(label: str, **more: Any) -> dict[str, Any]:
        return {"label": label, "agents": [{"name": "ann", "kind": STEADY}, {**bob, "answer": label}], **more}

    vectors = {"openings": {"zeros": 3}}
    server = {"kind": "openai", "model": "m", "api_key_env": None, "base_url": "http://127.0.0.1:9/v1"}
    quick = {"max_attempts": 2, "backoff": 0.01, "timeout": 5}
    cells = [
        cell("fine"),
        cell("raise"),
        cell("none"),
        cell("shape", **vectors),
        cell("nan", **vectors),
        {"label": "server", "agents": [{"name": "ann", "kind": STEADY}, {"name": "bob", **server, **quick}]},
    ]
    spec = write_spec(tmp_path, openings=["x"], max_rounds=2, sweep=cells)
    done = call(capsys, "run", spec, "--storage", tmp_path / "runs", "--workers", "1", "--json")
    assert done.status == 1
    assert done.err.count("Traceback") == 1, "of the first that failed"
    assert "a2a_ray/" not in done.err, "our own frames are left out"
    paid = {"ledger": {"calls": 1, "answered": 0, "possibly_duplicated": 0, "unanswered": 1}, "usage": {}}
    counts = {"conversations": 6, "done": 1, "failed": 5, "turns": 4 + 5}
    assert {**done.json, "run": ""} == {"run": "", **counts, **paid}
    errors = {
        "1-0-0": "agent 'bob' failed at turn 2: ZeroDivisionError: by zero",
        "2-0-0": "agent 'bob' returned None at turn 2; expected a Message",
        "3-0-0": "agent 'bob' at turn 2: content has shape (2,); expected (3,), the shape of the request",
        "4-0-0": "agent 'bob' at turn 2: content has NaN or infinite values (3 of 3)",
        "5-0-0": "agent 'bob' at turn 2: no connection to http://127.0.0.1:9/v1 after 2 attempts",
    }
    assert "5 conversations failed:" in done.err
    assert "--retry-failed" in done.err
    for transcript in open_run(done.json["run"]).transcripts():
        if transcript.id in errors:
            assert transcript.status == "failed"
            assert transcript.error.startswith(errors[transcript.id])
            assert [m.sender for m in transcript] == ["ann"]
            assert f"  {transcript.id} after 1 turns: {errors[transcript.id]}" in done.err
    again = call(capsys, "resume", done.json["run"], "--workers", "1", "--json")
    assert (again.status, again.json) == (1, done.json)


# --- interrupted, or out of space: what was acknowledged is kept, and it goes on -------------------------------------


def gated(folder: Path, talks: int, turns: int, **more: Any) -> Path:
    agent = {"kind": STEADY, "gate": str(folder / "gate"), **more}
    agents = [{"name": "ann", **agent}, {"name": "bob", **agent}]
    return write_spec(folder, name="slow", agents=agents, openings={"first": talks}, max_rounds=None, max_turns=turns)


def undisturbed(spec: Path, size: int = 20) -> dict[str, Any]:
    """What the specification says, from the plain loop in this process."""
    experiment = Experiment.load(spec)
    out = {}
    for task in experiment.tasks():
        conversation = Conversation(
            [Steady("ann", size=size), Steady("bob", size=size)],
            opening=experiment.opening_contents[task.opening],
            max_turns=experiment.max_turns,
            seed=task.seed,
            id=task.id,
        )
        out[task.id] = in_short(conversation.run())
    return out


def wait_for_turns(storage: Path, least: int) -> str:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (names := run_names(storage)) and len(open_run(names[0]).turns) >= least:
            return names[0]
        time.sleep(0.1)
    raise AssertionError(f"no {least} turns within 300 s")


def processes_with(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:100])
    return found


@pytest.mark.chaos
def test_ctrl_c_leaves_a_run_that_can_be_resumed(
    ray_cluster: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gated(tmp_path, 4, 20)
    calm = undisturbed(spec)
    mark = str(tmp_path)
    # Turns in flight, here at the gate, have half a minute to end.
    soon = "from a2a_ray.runtime import driver; driver.STOP_SECONDS = 1.0"
    command = ("run", spec, "--storage", "cut", "--workers", "1", "--json")
    process = start(*command, cwd=tmp_path, first=soon, **{MARK: mark})
    wait_for_turns(tmp_path / "cut", 4 * 6)
    assert processes_with(mark)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
    done = finish(process, 300)
    (path,) = run_names(tmp_path / "cut")
    name = f"cut/{Path(path).name}"
    assert (done.status, done.out) == (130, "")
    assert done.err == f"Interrupted. All stored turns are kept. Resume with: a2a-ray resume {name}\n"
    deadline = time.monotonic() + 120
    while (left := processes_with(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []
    assert said(path) == {id: [*turns[:6], "running", ""] for id, turns in calm.items()}
    (tmp_path / "gate").touch()
    monkeypatch.chdir(tmp_path)
    again = call(capsys, "resume", name, "--workers", "1", "--json")
    assert again.status == 0, again.err
    assert again.json == {"run": name, "conversations": 4, "done": 4, "failed": 0, "turns": 80}
    assert said(path) == calm


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.chaos
def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    ray_cluster: None, small_disk: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = gated(tmp_path, 4, 100, size=4000)  # 1.6 MB of text that cannot be compressed
    calm = undisturbed(spec, size=4000)

    def open_the_gate() -> None:
        wait_for_turns(small_disk, 4 * 6)  # 0.1 MB: there is room for them, and they are stored before the rest
        (tmp_path / "gate").touch()

    opener = threading.Thread(target=open_the_gate)
    opener.start()
    done = call(capsys, "run", spec, "--storage", small_disk, "--workers", "1", "--json")
    opener.join()
    assert (done.status, done.out) == (1, "")
    assert done.err.count("\n") == 1
    (path,) = run_names(small_disk)
    assert done.err.startswith(f"Error: {path}: the turns cannot be written: ")
    assert "No space left" in done.err
    assert "resume" in done.err
    cut = said(path)
    assert 4 * 6 <= sum(len(turns) - 2 for turns in cut.values()) < 400
    for id, turns in cut.items():
        assert calm[id][: len(turns) - 2] == turns[:-2]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert call(capsys, "resume", path, "--workers", "1").status == 0
    assert said(path) == calm


# --- keys -----------------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Answers chat completions; to those who say so it complains, and repeats the key in its complaint."""

    seen: list[str]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Authorization"]
        self.seen.append(key)
        said = request["messages"][-1]["content"]
        status, answer = (
            200,
            {"choices": [{"message": {"content": f"You said: {said[-40:]}"}, "finish_reason": "stop"}]},
        )
        if "complain" in said:
            status, answer = 400, {"error": {"message": f"the header {key!r} is not welcome", "code": key}}
        body = json.dumps({"id": "1", "model": "m", "object": "chat.completion", **answer}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on the loopback: its address, and the Authorization headers that it saw."""
    seen: list[str] = []
    handler = type("Handler", (Server,), {"seen": seen})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}/v1", seen
        served.shutdown()


def files_with(secret: str, *folders: Path) -> list[Path]:
    wanted = secret.encode()
    return [f for folder in folders for f in folder.rglob("*") if f.is_file() and wanted in f.read_bytes()]


def test_a_planted_key_is_nowhere_on_disk(
    server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLANTED_KEY", SECRET)
    url, seen = server
    agent = {"kind": "openai", "model": "m", "base_url": url, "api_key_env": "PLANTED_KEY", "max_attempts": 2}
    agents = [{"name": "ann", **agent}, {"name": "bob", **agent, "price": {"input": 1.0}}]
    write_spec(tmp_path, agents=agents, openings=["Good day.", "Please complain."], max_rounds=2)
    sessions = Path(tempfile.mkdtemp(prefix="a2a-", dir="/tmp"))  # short: sockets have paths of at most 107 bytes
    try:
        run = start("run", "spec.yaml", "--workers", "1", "--json", cwd=tmp_path, RAY_TMPDIR=str(sessions))
        done = finish(run)
        assert done.status == 1, done.err
        assert seen.count(f"Bearer {SECRET}") == 4 + 1
        path = done.json["run"]
        assert "0-1-0 after 0 turns: agent 'ann' at turn 1" in done.err
        assert "[key]" in done.err
        for arguments in (["report", path, "--embedder", "none"], ["export", path], ["show", path]):
            later = call(capsys, *arguments)
            assert later.status == 0, later.err
            assert SECRET not in later.out + later.err
        assert SECRET not in done.out + done.err
        assert any(sessions.rglob("raylet*")), "Ray was to keep its logs here"
        assert {"manifest.json", "report.html", "run.jsonl"} <= {p.name for p in tmp_path.rglob("*")}
        assert files_with("You said", tmp_path), "the search must be able to find something"
        assert files_with(SECRET, tmp_path, sessions) == []
    finally:
        shutil.rmtree(sessions, ignore_errors=True)
    manifest = yaml.safe_load((tmp_path / path / "manifest.json").read_text())
    assert manifest["experiment"]["agents"][0]["api_key_env"] == "PLANTED_KEY"
