"""Where a local language model comes from: an embedded one, a folder, or the Hugging Face hub. Only safetensors."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from a2a_ray.agents.hf.hf_loading import first_line, quiet
from a2a_ray.core.errors import AgentError, ConfigurationError

WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
# Other copies of the weights: in subfolders, or unsplit beside the split ones.
UNWANTED = ["*/*", "consolidated*"]


def embedded() -> dict[str, Path]:
    """The models that the package carries: name -> folder."""
    home = Path(str(files("a2a_ray"))) / "data" / "models"
    return {path.parent.name: path.parent for path in sorted(home.glob("*/config.json"))}


def local_folder(model: str) -> Path | None:
    """The folder of an embedded model or of a path, with config.json and weights in it; None for a hub id.

    Raises ConfigurationError for a folder without them, and for a name that is none of the three.
    """
    carried = embedded()
    path = carried.get(model) or Path(model).expanduser()
    if model.startswith((".", "/", "~")) or path.exists():
        if not path.is_dir():
            raise ConfigurationError(f"model: {model!r}; no such folder")
        if not (path / "config.json").is_file():
            raise ConfigurationError(f"model: {model!r}; no config.json in it; expected a model folder of transformers")
        if missing := missing_weights(path):
            raise ConfigurationError(f"model: {model!r}; {missing}")
        return path
    if "/" not in model:
        raise ConfigurationError(
            f"model: {model!r}; neither a folder nor an embedded model ({', '.join(carried) or 'there are none'});"
            " a model of the hub has an owner: owner/name"
        )
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]*\w", model, re.ASCII):
        raise ConfigurationError(f"model: {model!r}; neither a folder nor a hub id such as owner/name")
    return None


def missing_weights(folder: Path) -> str:
    """What of the weights is not in the folder, as half a sentence; empty where all is there."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            parts = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return f"{index.name} in it is damaged"
        absent = sorted(part for part in parts if not (folder / part).is_file())
        return f"{', '.join(absent)} missing in it" if absent else ""
    if any(folder.glob("*.safetensors")):
        return ""
    return "no *.safetensors in it; pickled weights are not loaded"


def config_context(folder: Path) -> int | None:
    """Context length in tokens by config.json, without loading anything; None where it names none."""
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    lengths = (config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((length for length in lengths if isinstance(length, int)), None)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokeniser in the folder carries a chat template."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def fetch(repo: str, revision: str | None) -> Path:
    """The folder of a hub model: from the cache where it is whole, else downloaded. Raises AgentError."""
    from huggingface_hub import errors

    what = f"model {repo!r}" + (f" at revision {revision!r}" if revision else "")
    with quiet():
        try:
            cached = _snapshot(repo, revision, local_files_only=True)
            if not missing_weights(cached) and (cached / "config.json").is_file():
                return cached
        except (OSError, ValueError):
            pass  # not in the cache, or half of it
        try:
            folder = _snapshot(repo, revision, local_files_only=False)
        except errors.GatedRepoError:
            remedy = "is gated: accept its terms on its page and set HF_TOKEN to a token of your account"
        except errors.RepositoryNotFoundError:
            remedy = "is not on the hub, or private: check the name, or set HF_TOKEN"
        except errors.RevisionNotFoundError:
            remedy = "is not on the hub: there is no such revision"
        except Exception as error:  # no network, a proxy, a full disk: all end here, in one sentence
            reason = first_line(error).removeprefix("Got: ")
            remedy = (
                f"is not in the cache and could not be downloaded ({reason}): try again with a network,"
                f" give a folder, or use an embedded model ({', '.join(embedded()) or 'there are none'})"
            )
        else:
            if missing := missing_weights(folder):
                raise AgentError(f"{what}: {missing}")
            return folder
    raise AgentError(f"{what} {remedy}")


def _snapshot(repo: str, revision: str | None, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repo,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
        )
    )


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file. Raises ConfigurationError where it is damaged."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"model: {path.parent.name!r}; {path.name} in it is damaged: {error}") from None
    return value if isinstance(value, dict) else {}
