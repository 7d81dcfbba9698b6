"""The English prose that every Python installation carries, cleaned, as documents for the tiny models.

A document is one help topic of `pydoc_data.topics` or all docstrings of one standard library file. It is a list of
paragraphs, each a single line. The order is sorted and nothing is imported but `pydoc_data`, so the same Python gives
the same text.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
SKIPPED_FILES = {"this.py", "antigravity.py", "__phello__.foo.py"}
BULLET = re.compile(r"^(\s*)((?:[*+-]|\(?[0-9a-z]{1,2}[.)])\s+)(?=\S)")
CODE_LINE = re.compile(r"^\s*(>>>|\.\.\.( |$)|\$ |\.\. |:\w+|@\w+|[-=*~^+#_|]{3,}|#|\|)|^\s*\+[-=]+\+|::=| \| .* \| ")
SIGNATURE = re.compile(r"^\s*[\w.]+\([^)]*\)?\s*(->.*|:)?$|->")
SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"'][.!?])\s+(?=[A-Z\"'])")
OPEN_END = re.compile(r"\b(an?|and|as|at|by|for|from|in|is|of|on|or|that|the|to|with)$", re.IGNORECASE)
PLAIN_WORD = re.compile(r"^[(\"']?[A-Za-z]+(?:['-][A-Za-z]+)*[)\"']?[.,;:!?]*[)\"']?$")
MARKS = [
    (re.compile(r":[a-z:+-]+:`~?([^`<]*?)(?: *<[^`]*>)?`"), r"\1"),  # :func:`name`
    (re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}"), r"\1"),  # ``literal`` and `link`_
    (re.compile(r"``|''"), '"'),
    (re.compile(r"(?<![\w*])\*{1,2}(\w[^*]*?)\*{1,2}(?![\w*])"), r"\1"),  # *argument* and **strong**
    (re.compile(r" ?\[(?:\d+|#\w*)\]_?"), ""),  # footnotes
    (re.compile(r'"([A-Za-z_][\w.]*(?:\(\))?)"'), r"\1"),  # "name", as the help topics write code
    (re.compile(r"\s*--\s*"), " - "),
    (re.compile(r"\s+"), " "),
]


@dataclass(frozen=True)
class Document:
    name: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.paragraphs) + "\n"


def number(name: str) -> int:
    """A number that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines that belong together: cut at blank lines, list items, code lines and changes of indentation."""
    block: list[str] = []
    indent = 0
    for raw in [*text.expandtabs().splitlines(), ""]:
        bullet = BULLET.match(raw)
        line = raw if bullet is None else " " * bullet.end() + raw[bullet.end() :]
        here = len(line) - len(line.lstrip())
        code = bool(CODE_LINE.search(line) or SIGNATURE.search(line))
        if block and (not line.strip() or code or bullet or here != indent):
            yield block
            block = []
        if line.strip() and not code:
            block.append(line.strip())
            indent = here
    if block:
        yield block


def is_english(sentence: str) -> bool:
    """Whether the sentence starts and ends like one, is mostly ordinary words and holds no code."""
    words = sentence.split()
    plain = sum(PLAIN_WORD.match(word) is not None for word in words)
    letters = sum(char.isalpha() for char in sentence) / max(len(sentence.replace(" ", "")), 1)
    return (
        4 <= len(words) <= 70
        and sentence.isascii()
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and plain >= 0.85 * len(words)
        and letters > 0.88
        and sum(word.isupper() and len(word) > 1 for word in words) <= 0.08 * len(words)
        and re.search(r"[=<>{}\\|%$@#^~&*]|\w\[|https?:|\.\.", sentence) is None
    )


def prose(text: str) -> Iterator[str]:
    """The paragraphs of plain English in a docstring or help topic, each a single line without markup."""
    for block in blocks(text):
        line = " ".join(block)
        for pattern, replacement in MARKS:
            line = pattern.sub(replacement, line)
        line = line.strip()
        if line and line[-1].isalnum() and OPEN_END.search(line) is None:
            line += "."  # summary lines often lack it
        kept = [sentence for sentence in SENTENCE_END.split(line) if sentence and is_english(sentence)]
        if kept:
            yield " ".join(kept)


def docstrings(path: Path) -> Iterator[str]:
    """All docstrings of a source file, from top to bottom; the file is parsed, never run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        if text := ast.get_docstring(node):
            yield text


def sources() -> Iterator[tuple[str, Iterator[str]]]:
    """Pairs of document name and raw texts, sorted by name."""
    for topic in sorted(topics):
        yield f"topic/{topic}", iter([inspect.cleandoc(topics[topic])])
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if not SKIPPED_FOLDERS & set(relative.parts[:-1]) and relative.name not in SKIPPED_FILES:
            yield relative.as_posix(), docstrings(path)


def documents() -> list[Document]:
    """All documents with some prose; a paragraph that came before, in any document, is left out."""
    seen: set[str] = set()
    found: list[Document] = []
    for name, texts in sources():
        paragraphs: list[str] = []
        for text in texts:
            for paragraph in prose(text):
                if paragraph not in seen:
                    seen.add(paragraph)
                    paragraphs.append(paragraph)
        if sum(map(len, paragraphs)) >= 200:
            found.append(Document(name, tuple(paragraphs)))
    return found


def digest(parts: Iterable[Document]) -> str:
    """The sha256 of names and texts."""
    return hashlib.sha256("".join(f"{part.name}\n{part.text}\f" for part in parts).encode()).hexdigest()
