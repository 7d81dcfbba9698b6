"""Keep API keys out of specifications, because a run's manifest, store and report contain the specification."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from a2a_ray.core.errors import ConfigurationError

_SECRET = re.compile(
    r"(?i:(^|[._-])(api[-_]?key|access[-_]?(key|token)|auth[-_]?token|authorization|password|secret))$|[A-Z]_(TOKEN|KEY)$"
)


def refuse_keys(value: Any, where: str, path: str = "") -> None:
    """Raise ConfigurationError for text under a name such as api_key, at any depth. The error omits the text."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if _SECRET.search(str(name)) and _has_text(inner):
                raise ConfigurationError(
                    f"{where}: {path}{name}: a key must not stand in a specification, which the run keeps; put it into"
                    " an environment variable, on every node, and name that one with api_key_env"
                )
            refuse_keys(inner, where, f"{path}{name}.")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            refuse_keys(inner, where, f"{path}{i}.")


def _has_text(value: Any) -> bool:
    return any(map(_has_text, value)) if isinstance(value, list) else isinstance(value, str) and value != ""
