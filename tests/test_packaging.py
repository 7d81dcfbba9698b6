"""What is built and installed, who imports whom, and what must not be in the repository."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import a2a_ray

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("agents", "protocols", "analysis")
HEAVY = ("ray", "torch", "transformers", "sentence_transformers", "numpy", "pydantic", "pyarrow", "deltalake", "openai")
CODE = [ROOT / "a2a_ray", *(ROOT / f for f in FOLDERS)]
OTHER_CODE = [ROOT / f for f in ("tests", "benchmarks", "scripts", "examples")]
MOST_LINES = 400
MOST_FUNCTION_LINES = 50


def sources(folders: list[Path]) -> list[Path]:
    """Python files below folders, each once: links are not followed."""
    return sorted(
        Path(at) / name for f in folders for at, _, names in os.walk(f) for name in names if name[-3:] == ".py"
    )


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, as `package.module`, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "a2a_ray" else ("a2a_ray", *parts)).removesuffix(".__init__")


def repository_files() -> list[Path]:
    """Tracked files, and new ones that are not ignored."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git working tree")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


# --- the artefacts


def build(source: Path, out: Path, *what: str) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(ROOT, tmp_path_factory.mktemp("wheel"), "--wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, folder, "--sdist")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (p for p in folder.iterdir() if p.is_dir())
    return unpacked


def contents(wheel: zipfile.ZipFile) -> dict[str, bytes]:
    """What a wheel installs, without its own table of contents."""
    return {name: wheel.read(name) for name in wheel.namelist() if not name.endswith("RECORD")}


def test_the_wheel_installs_one_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"a2a_ray", f"a2a_ray-{a2a_ray.__version__}.dist-info"}


def test_the_wheel_holds_all_code_and_data(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    expected = {module_of(p).replace(".", "/") for p in sources(CODE)}
    found = {name.removesuffix(".py").removesuffix("/__init__") for name in inside if name.endswith(".py")}
    assert found == expected
    data = [p for p in repository_files() if p.is_relative_to(ROOT / "a2a_ray") and p.suffix != ".py"]
    assert {str(p.relative_to(ROOT)) for p in data} <= inside
    assert {"a2a_ray/py.typed", "a2a_ray/data/openings.txt"} <= inside
    for folder in FOLDERS:
        assert any(name.startswith(f"a2a_ray/{folder}/") for name in inside)


def test_the_sdist_builds_the_same_wheel(
    wheel: zipfile.ZipFile, sdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = zipfile.ZipFile(build(sdist, tmp_path_factory.mktemp("again"), "--wheel"))
    assert contents(again) == contents(wheel)


def test_nothing_private_is_built(wheel: zipfile.ZipFile, sdist: Path) -> None:
    names = [*wheel.namelist(), *(str(p.relative_to(sdist)) for p in sdist.rglob("*"))]
    strange = [n for n in names if re.search(r"(^|/)(\.venv.*|\.git|__pycache__|\.hypothesis|runs|demo)(/|$)", n)]
    assert not strange


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "a2a-ray = a2a_ray.interface.cli:main" in wheel.read(name).decode()


def test_the_wheel_works_installed(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Unpacked somewhere else, with neither the repository nor its links in reach."""
    wheel.extractall(tmp_path)
    code = (
        "from a2a_ray import Conversation, EchoAgent; import a2a_ray;"
        "print(a2a_ray.__file__, len(Conversation([EchoAgent('ann')], opening='x', max_turns=3).run()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "a2a_ray" / "__init__.py"), "3"]


# --- the layout


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_links_resolve_and_are_relative(folder: str) -> None:
    link = ROOT / "a2a_ray" / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{folder}"
    assert link.resolve() == ROOT / folder
    assert not (ROOT / folder / "__init__.py").exists(), "it would hide other packages of this name"


def test_nothing_imports_the_folders_by_their_bare_names() -> None:
    bare = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in sources(CODE + OTHER_CODE)
        for name, line in imports(path)
        if name.split(".")[0] in FOLDERS
    ]
    assert not bare


# A module may import from its own room and from the lines above its own.
LAYERS = [
    ("a2a_ray.core",),
    ("a2a_ray.transcripts",),
    ("a2a_ray.agents", "a2a_ray.protocols", "a2a_ray.analysis"),
    ("a2a_ray.core.conversation",),
    ("a2a_ray.experiment",),
    ("a2a_ray.store", "a2a_ray.testing"),
    ("a2a_ray.runtime",),
    ("a2a_ray.report",),
    ("a2a_ray.reproduce",),
    ("a2a_ray.interface",),
    ("a2a_ray",),
]


def layer(module: str) -> tuple[int, str]:
    """Level and room of a module: the longest prefix in LAYERS."""
    rooms = [(len(r), i, r) for i, row in enumerate(LAYERS) for r in row if f"{module}.".startswith(f"{r}.")]
    _, level, room = max(rooms)
    return level, room


def test_imports_point_downwards_only() -> None:
    wrong = []
    for path in sources(CODE):
        level, room = layer(module_of(path))
        for name, line in imports(path):
            if not name.startswith("a2a_ray."):
                continue
            other_level, other_room = layer(name)
            if other_level > level or (other_level == level and other_room != room):
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({room}) imports {name} ({other_room})")
    assert not wrong


def test_no_modules_import_each_other() -> None:
    """Imports for types only and imports within functions count too: they tie files together for a reader."""
    paths = {module_of(path): path for path in sources(CODE) if path.name != "__init__.py"}
    graph = {
        module: {found for name, _ in imports(path) if (found := name if name in paths else name.rpartition(".")[0])}
        for module, path in paths.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_modules_and_public_classes_have_names_of_their_own() -> None:
    modules = Counter(path.stem for path in sources(CODE) if path.stem != "__init__")
    classes = Counter(
        node.name
        for path in sources(CODE)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not [name for names in (modules, classes) for name, count in names.items() if count > 1]


def test_one_place_imports_ray() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources(CODE)
        for name, line in imports(path)
        if name.split(".")[0] == "ray" and not path.is_relative_to(ROOT / "a2a_ray" / "runtime")
    ]
    assert not wrong


def test_no_file_is_too_long() -> None:
    folders = [*CODE, *(f for f in OTHER_CODE if f.name != "tests")]
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in sources(folders)}
    assert not {name: lines for name, lines in long.items() if lines > MOST_LINES}


def test_no_function_is_too_long() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in sources(CODE)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if node.end_lineno is not None and node.end_lineno - node.lineno > MOST_FUNCTION_LINES
    ]
    assert not long


def test_every_public_name_has_a_docstring() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    missing = []
    for path in sources(CODE):
        for node in ast.parse(path.read_text()).body:
            inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            for item in (node, *inside):
                if isinstance(item, kinds) and not item.name.startswith("_") and ast.get_docstring(item) is None:
                    missing.append(f"{path.relative_to(ROOT)}:{item.lineno} {item.name}")
    assert not missing


# --- the public names


def test_the_public_names_are_all_there() -> None:
    missing = {}
    for name in a2a_ray.__all__:
        try:
            getattr(a2a_ray, name)
        except (ImportError, AttributeError) as error:
            missing[name] = str(error)
    assert not missing
    assert sorted(n for n in dir(a2a_ray) if not n.startswith("_")) == a2a_ray.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = a2a_ray.nothing  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "a2a_ray" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {f"{n.module}.{a.asname}" for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == {f"a2a_ray.{module}.{name}" for name, module in a2a_ray._MODULE_OF_NAME.items()}


def test_nothing_but_the_public_names_is_left_by_the_import() -> None:
    """In a fresh process: no name without an underscore stands in the module before it is asked for."""
    code = "import a2a_ray; print([n for n in vars(a2a_ray) if not n.startswith('_') and n != 'annotations'])"
    assert run_python(code) == "[]"


def test_the_import_is_light() -> None:
    assert run_python(f"import a2a_ray, sys; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_the_core_needs_no_array_library() -> None:
    code = (
        "from a2a_ray import Conversation, EchoAgent, Alternating, read_jsonl; import sys;"
        "Conversation([EchoAgent('ann'), EchoAgent('bob')], Alternating(), 'x', max_turns=2).run();"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert a2a_ray.__version__ == project["version"]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- what must not be in the repository

# Put together here, so that this file does not hold what it looks for.
MACHINE_PATHS = "|".join(rf"(?<![\w.])/{folder}/" for folder in ("root", "work", "home", "Users", "opt"))
REGISTRIES = "|".join(("py" + r"pi\.org", r"python" + r"hosted\.org", r"download\." + r"pytorch\.org", "file" + "://"))
TEXT = {".py", ".toml", ".txt", ".md", ".yaml", ".yml", ".j2", ".css", ".js", ".html", ""}


def test_no_machine_paths_and_no_registry_addresses() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in repository_files()
        if path.suffix in TEXT and not path.is_relative_to(ROOT / "a2a_ray" / "data" / "models")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in re.finditer(f"{MACHINE_PATHS}|{REGISTRIES}", line)
    ]
    assert not found


def test_the_constraints_pin_every_dependency() -> None:
    """Every package that `.[offline,dev]` needs, and every one that these need, has one version in the file."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    waiting = [("a2a-ray", ("offline", "dev"))]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    missing = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needs = [Requirement(r) for r in requires(name) or ()]
        except PackageNotFoundError:  # a CUDA package, or another platform's: torch's own pin decides
            continue
        for need in needs:
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in ("", *extras)):
                other = canonicalize_name(need.name)
                waiting.append((other, tuple(sorted(need.extras))))
                if other not in pinned and other != "a2a-ray" and not other.startswith(("nvidia-", "cuda-", "triton")):
                    missing.add(f"{other} (for {name})")
    assert not missing
