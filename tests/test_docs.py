"""The Python blocks of README.md and docs/*.md run, in order, one page in one namespace.

A block that cannot run here has `<!-- not run: the reason -->` on the line above it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from a2a_ray.core.registry import load
from a2a_ray.experiment.spec import Experiment

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line of the opening fence and text of each block that is to run."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start(3)), m[3]) for m in BLOCK.finditer(text) if m[2] == language and m[1] is None]


def execute(code: str, page: Path, line: int, names: dict[str, Any]) -> None:
    """Runs a block; `await` and `async for` may stand in it, as in a notebook."""
    source = "\n" * line + code  # so that a failure names the line of the page
    result = eval(compile(source, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(result):
        asyncio.run(result)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for line, code in blocks(page, "python"):
        execute(code, page, line, names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value()


def test_the_specification_of_the_page_on_extending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "extending.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_parts.py").write_text(blocks(page, "python")[0][1])
    ((_, specification),) = blocks(page, "yaml")
    Path("experiment.yaml").write_text(specification)
    experiment = Experiment.load("experiment.yaml")
    experiment.check()
    assert len(list(experiment.tasks())) == 3
    ((_, points),) = blocks(page, "toml")
    for group, entries in tomllib.loads(points)["project"]["entry-points"].items():
        assert group in ("a2a_ray.agents", "a2a_ray.protocols", "a2a_ray.observers")
        assert all(callable(load(path, group)) for path in entries.values())


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [t for t in targets if not (page.parent / t).exists()]
    assert not missing
