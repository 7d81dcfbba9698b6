"""The examples of README.md and docs/ run, in the order of the page, in one namespace for each page.

A `python` block runs. A `bash` block runs if its output follows it: each of its lines that calls `a2a-ray` does. A
`text` block directly after either is what it prints; `...` stands for anything. A block that cannot run here has
`<!-- not run: the reason -->` on the line above it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from a2a_ray.core import errors, registry
from a2a_ray.core.findings import Finding
from a2a_ray.core.registry import load
from a2a_ray.experiment.agent_spec import AgentSpec
from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.run_actors import RunActors
from a2a_ray.store.schema import SCHEMA
from tests.command_line import call

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITHOUT_EXAMPLE = [ROOT / "README.md", DOCS / "README.md", DOCS / "log.md"]
BLOCK = re.compile(
    r"^(<!-- not run: .+ -->\n)?```(\w+)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block: the line of its opening fence, whether it runs, and what it prints if the page says so."""

    line: int
    runs: bool
    language: str
    text: str
    output: str | None


def blocks(page: Path, language: str = "") -> list[Block]:
    """The blocks of a page, or those of one language."""
    text = page.read_text(encoding="utf-8")
    found = [Block(text.count("\n", 0, m.start(3)), m[1] is None, m[2], m[3], m[4]) for m in BLOCK.finditer(text)]
    return [block for block in found if block.language == language or not language]


def name_of(page: Path) -> str:
    """The page as a test's name: its path in the repository."""
    return str(page.relative_to(ROOT))


def run_python(block: Block, page: Path, names: dict[str, Any]) -> None:
    """Run a block; `await` and `async for` may stand in it, as in a notebook."""
    source = "\n" * block.line + block.text  # so that a failure names the line of the page
    result = eval(compile(source, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(result):
        asyncio.run(result)


def run_commands(block: Block, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the `a2a-ray` lines of a block in this process; return what they print."""
    lines = [shlex.split(line, comments=True) for line in block.text.replace("\\\n", " ").splitlines()]
    done = [call(capsys, *line[1:]) for line in lines if line[:1] == ["a2a-ray"]]
    return "".join(d.out + d.err for d in done)


def matches(expected: str, printed: str) -> bool:
    """Whether the output is what the page shows; `...` stands for anything."""
    lines = [line.rstrip() for line in expected.strip().splitlines()]
    pattern = ".*".join(re.escape(part) for part in "\n".join(lines).split("..."))
    # Ray prints on its own when a process dies.
    ours = [line.rstrip() for line in printed.strip().splitlines() if "(raylet)" not in line]
    return re.fullmatch(pattern, "\n".join(ours), re.DOTALL) is not None


def examples(page: Path) -> Iterator[Block]:
    """The blocks of a page that run."""
    for block in blocks(page):
        if block.runs and (block.language == "python" or (block.language == "bash" and block.output is not None)):
            yield block


@pytest.mark.parametrize("page", [p for p in PAGES if any(examples(p))], ids=name_of)
def test_examples_run_and_print_what_the_page_shows(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ray_cluster: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunActors, "workers_that_fit", lambda self: 1)  # the pages show nothing that depends on it
    monkeypatch.setenv("COLUMNS", "100")
    names: dict[str, Any] = {"__name__": "page"}
    for block in examples(page):
        capsys.readouterr()
        if block.language == "bash":
            printed = run_commands(block, capsys)
        else:
            run_python(block, page, names)
            printed = capsys.readouterr().out
        if block.output is not None:
            assert matches(block.output, printed), f"{name_of(page)}, line {block.line}: it prints\n{printed}"
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value()


@pytest.mark.parametrize("page", [p for p in PAGES if p not in WITHOUT_EXAMPLE], ids=name_of)
def test_a_page_opens_with_an_example_and_its_output(page: Path) -> None:
    first = blocks(page)[0]
    assert first.runs
    assert first.language in ("python", "bash")
    assert first.output


def test_the_specification_of_the_page_on_extending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = DOCS / "guides" / "extending.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("my_parts.py").write_text(blocks(page, "python")[1].text)
    (specification,) = blocks(page, "yaml")
    Path("experiment.yaml").write_text(specification.text)
    experiment = Experiment.load("experiment.yaml")
    experiment.check()
    assert len(list(experiment.tasks())) == 3
    (points,) = blocks(page, "toml")
    for group, entries in tomllib.loads(points.text)["project"]["entry-points"].items():
        assert group in ("a2a_ray.agents", "a2a_ray.protocols", "a2a_ray.observers")
        assert all(callable(load(path, group)) for path in entries.values())


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8"))
    assert [target for target, _ in links if not (page.parent / target).exists()] == []
    headings = {t: anchors(page.parent / t if t else page) for t, anchor in links if anchor}
    assert [(target, anchor) for target, anchor in links if anchor and anchor not in headings[target]] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    pages = [p.relative_to(DOCS) for p in sorted(DOCS.rglob("*.md")) if p.name != "README.md"]
    assert [str(p) for p in pages if f"]({p})" not in index] == []


REFERENCE = {
    "specification": [
        *Experiment.model_fields,
        *AgentSpec.model_fields,
        *(kind for kinds in (registry.agents, registry.protocols) for kind in kinds.names()),
    ],
    "turns_table": SCHEMA.names,
    "findings": [field.name for field in fields(Finding)],
    "errors": [name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)],
}


@pytest.mark.parametrize("page", REFERENCE)
def test_the_reference_names_everything(page: str) -> None:
    text = (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
    assert [name for name in REFERENCE[page] if f"`{name}`" not in text] == []


def test_where_is_what_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:a2a_ray|agents|protocols|analysis|tests|docs)/[\w/.]*)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_pages_that_the_code_names_exist() -> None:
    folders = [ROOT / top for top in ("a2a_ray", "agents", "analysis", "protocols", "scripts", "benchmarks")]
    files = [p for folder in folders for p in folder.rglob("*") if p.suffix in (".py", ".yaml", ".md", ".j2")]
    texts = [p.read_text(encoding="utf-8") for p in files]
    named = {path for text in texts for path in re.findall(r"\bdocs/[\w/]+\.md", text)}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
