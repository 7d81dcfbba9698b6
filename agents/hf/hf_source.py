"""Find a local language model: embedded in the package, in a folder, or on the hub. Only safetensors."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import AgentError, ConfigurationError
from a2a_ray.core.hub import folder_of, hub_folder

FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
# Other copies of the weights: in subfolders, or unsplit beside the split ones.
IGNORED = ["*/*", "consolidated*"]


def embedded() -> dict[str, Path]:
    """Return the models that the package carries: name -> folder."""
    home = Path(str(files("a2a_ray"))) / "data" / "models"
    return {path.parent.name: path.parent for path in sorted(home.glob("*/config.json"))}


def local_folder(model: str) -> Path | None:
    """Return the folder of an embedded model or of a path; None for a hub id.

    Raises ConfigurationError for a folder without config.json or weights, and for a name that is none of the three.
    """
    carried = embedded()
    folder = carried.get(model) or folder_of(model, f"model {model!r}")
    if folder is not None:
        if missing := missing_files(folder):
            raise ConfigurationError(f"model {model!r}: {missing}")
        return folder
    if "/" not in model:
        raise ConfigurationError(
            f"model {model!r}: neither a folder nor an embedded model ({', '.join(carried) or 'none is installed'});"
            " a model of the hub has an owner: owner/name"
        )
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]*\w", model, re.ASCII):
        raise ConfigurationError(f"model {model!r}: neither a folder nor a hub id such as owner/name")
    return None


def missing_files(folder: Path) -> str:
    """Return what the folder lacks to be a model of transformers, as a phrase; empty if it is complete."""
    if not (folder / "config.json").is_file():
        return "no config.json in it; expected a model folder of transformers"
    return missing_weights(folder)


def missing_weights(folder: Path) -> str:
    """Return which weights the folder lacks, as a phrase; empty if it has all of them."""
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
    """Return the context length in tokens by config.json, or None if it gives none. Loads no weights."""
    config = _json(folder / "config.json")
    config = config.get("text_config", config)
    lengths = (config.get(key) for key in ("max_position_embeddings", "n_positions"))
    return next((length for length in lengths if isinstance(length, int)), None)


def has_chat_template(folder: Path) -> bool:
    """Return whether the tokenizer in the folder has a chat template."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template"))


def fetch(repository: str, revision: str | None) -> Path:
    """Return the folder of a hub model, from the cache if it is complete there, else downloaded. Raises AgentError."""
    try:
        return hub_folder(
            repository,
            revision,
            model=f"model {repository!r}" + (f" at revision {revision!r}" if revision else ""),
            files=FILES,
            ignore=IGNORED,
            missing=missing_files,
            remedy="try again with a network, give the folder of a model, or use an embedded model"
            f" ({', '.join(embedded()) or 'none is installed'})",
        )
    except ConfigurationError as error:
        raise AgentError(str(error)) from None


def _json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty without the file. Raises ConfigurationError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"model {path.parent.name!r}: {path.name} in it is damaged: {error}") from None
    return value if isinstance(value, dict) else {}
