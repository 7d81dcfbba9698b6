"""Render a self-contained HTML page: plotly is inlined, nothing is loaded, and message texts cannot run."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.report.sanitize import clean, clean_line

TEMPLATES = Path(__file__).parent / "templates"

_FIGURES = re.compile(r"[\d.,%°×±/ e–-]+|[\d.,]+ ?%? (to|of) [\d.,]+ ?%?")


def render_page(template: str, drawn: dict[str, Any], **context: Any) -> str:
    """Return the page of a template that extends page.html.j2.

    drawn: data of the page's script: figures (anchor -> plotly JSON), series, positions. context: `data` with title,
    headline and numbers, and the other variables of the template.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=PackageLoader("a2a_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    templates.tests["figure"] = _is_figure
    templates.filters |= {"clean": clean, "line": clean_line, "cell": _cell, "setting": _setting}
    # The page runs only scripts whose hash is listed: text that slips through the escaping still cannot run.
    scripts = [get_plotlyjs(), (TEMPLATES / "report.js").read_text(encoding="utf-8")]
    page = templates.get_template(template).render(
        drawn={"figures": {}, "series": {}, "positions": {}} | drawn,
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_hash(script) for script in scripts],
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        **context,
    )
    return page.lstrip()


def write_page(path: str | Path, page: str) -> Path:
    """Write a page atomically and return its path. Raises ConfigurationError if it cannot be written."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(page.encode("utf-8", errors="replace"))
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ConfigurationError(f"{path}: {error.strerror or error}; choose another file with -o") from error
    return path


def _hash(script: str) -> str:
    """Return the hash of a script, as the Content-Security-Policy of the page lists it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _cell(value: str | int | float | None) -> str:
    """Return a cell of a table as text."""
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else clean(value)


def _is_figure(value: str | int | float | None) -> bool:
    """Return whether a cell is right-aligned: a number, or a text of numbers."""
    return not isinstance(value, str) or _FIGURES.fullmatch(value) is not None


def _setting(value: object) -> str:
    """Return the value of a setting on one line."""
    return clean_line(value if isinstance(value, str) else str(value), 300)
