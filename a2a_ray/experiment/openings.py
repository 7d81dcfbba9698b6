"""Read the openings of conversations: the built-in ones, a file, or vectors of zeros."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import ConfigurationError, unknown


def read_openings(spec: dict[str, Any]) -> list[Any]:
    """Return the openings of {first: n}, {file: lines.txt, first: n} or {zeros: d}. Raises ConfigurationError."""
    expected = "expected default, a list, {first: n}, {file: lines.txt} or {zeros: d}"
    for key in spec:
        if key not in ("file", "first", "zeros"):
            raise ConfigurationError(f"openings.{key}: {unknown('key', key, ('file', 'first', 'zeros'))}")
    for key in ("first", "zeros"):
        if key in spec and (type(spec[key]) is not int or spec[key] < 1):
            raise ConfigurationError(f"openings.{key}: {spec[key]!r}; expected a whole number of at least 1")
    if "zeros" in spec:
        if len(spec) > 1:
            raise ConfigurationError(f"openings: {spec}; {expected}")
        import numpy as np

        return [np.zeros(spec["zeros"])]
    if "file" in spec:
        try:
            text = Path(str(spec["file"])).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"openings.file: {spec['file']}: {getattr(error, 'strerror', None) or error}"
            ) from None
    else:
        text = resources.files("a2a_ray").joinpath("data/openings.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ConfigurationError(f"openings.file: {spec['file']} is empty; expected one opening a line")
    if spec.get("first", 0) > len(lines):
        raise ConfigurationError(f"openings.first: {spec['first']}; there are {len(lines)}")
    return list(lines[: spec.get("first")])
