"""Load and check the specification of an experiment, and list its conversations."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from a2a_ray.core.base_agent import agent_traits
from a2a_ray.core.contract_checks import check_judges, check_part, shown
from a2a_ray.core.conversation import DEFAULT_ROUNDS, check_names
from a2a_ray.core.errors import ConfigurationError, InvalidResponseError
from a2a_ray.core.message import checked_content
from a2a_ray.core.nudge_checks import check_nudges
from a2a_ray.core.registry import observers, protocols, terminations
from a2a_ray.core.seeds import conversation_seed
from a2a_ray.core.validation import explain
from a2a_ray.experiment.agent_spec import AgentSpec as AgentSpec
from a2a_ray.experiment.agent_spec import AnalyzeSpec, BudgetSpec, SpecSection, identity, plain
from a2a_ray.experiment.judge_spec import JudgeSpec
from a2a_ray.experiment.openings import read_openings
from a2a_ray.experiment.secrets import refuse_keys
from a2a_ray.experiment.sweep import change


def _settings(value: Any) -> Any:
    """Return the settings of a part; a kind alone means {kind: ...}."""
    if isinstance(value, str) or inspect.isclass(value):
        return {"kind": value}
    if isinstance(value, Mapping) or not (callable(value) or hasattr(value, "__dict__")):
        return value
    raise ConfigurationError(
        f"the value {shown(value)}; expected settings with a kind, such as {{kind: MyClass}}: a run makes its parts"
        " anew in each of its processes"
    )


Settings = Annotated[dict[str, Any], BeforeValidator(_settings)]


class Experiment(SpecSection):
    """Everything that determines the conversations: agents, protocol, openings, limits, repeats, seed and sweep.

    `analyze` has the settings of the analysis, and `budget` the limits of a run.

    `load` and `parse` raise ConfigurationError for an invalid specification.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=True)
    name: str = "run"
    seed: int = Field(0, ge=0)
    agents: list[AgentSpec] = Field(min_length=1)
    protocol: Settings = Field(default_factory=lambda: {"kind": "alternating"})
    openings: list[str | list[float]] | Literal["default"] | dict[str, Any] = "default"
    max_rounds: int | None = Field(None, ge=1)
    max_turns: int | None = Field(None, ge=1)
    repeats: int = Field(1, ge=1)
    termination: list[Settings] = Field([])
    observers: list[Settings] = Field([])
    budget: BudgetSpec | None = None
    analyze: AnalyzeSpec | None = None
    sweep: dict[str, list[Any]] | list[dict[str, Any]] = Field({})
    shared_storage: bool = False
    _source: str = PrivateAttr("specification")

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ConfigurationError(
                f"name: {value!r}; expected letters, digits, '.', '_' and '-', because it becomes a folder's name"
            )
        return value

    @field_validator("agents", mode="before")
    @classmethod
    def _described(cls, value: Any) -> Any:
        for i, agent in enumerate(value if isinstance(value, (list, tuple)) else ()):
            name = getattr(agent, "__name__", type(agent).__name__)
            if inspect.isroutine(agent):
                remedy = f"{{name: ann, kind: function, function: {name}}}"
            elif inspect.isclass(agent) and not isinstance(agent, Mapping):
                remedy = f"{{name: ann, kind: {name}}} and its settings"
            elif hasattr(agent, "step"):
                remedy = f"{{name: {getattr(agent, 'name', 'ann')}, kind: {name}}} and its settings"
            else:
                continue
            raise ConfigurationError(
                f"agents.{i}: {shown(agent)}; expected a mapping, since a run makes its agents anew in each of its"
                f" processes. Write {remedy}"
            )
        return value

    @field_validator("openings")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        # Read the file now: a run must not depend on later changes to it.
        return read_openings(value) if isinstance(value, dict) and "file" in value else value

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        check_names([a.name for a in self.agents])
        if self.max_rounds is not None and self.max_turns is not None:
            raise ConfigurationError(f"max_rounds: {self.max_rounds} and max_turns: {self.max_turns}; give one of them")
        if self.analyze is not None:
            self.analyze.check([a.name for a in self.agents])
        return self

    @classmethod
    def parse(cls, value: Any, where: str = "specification") -> Experiment:
        """Return the experiment of a plain mapping.

        Raises ConfigurationError with `where`, the key, its value and what is expected.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            found = "empty" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
            raise ConfigurationError(
                f"{where}: {found}; expected keys such as agents and max_rounds (a2a-ray init writes an example)"
            )
        refuse_keys(value, where)
        try:
            experiment = cls.model_validate(dict(value))
            experiment._source = where
            return experiment
        except ValidationError as error:
            raise ConfigurationError(f"{where}: {explain(error)}") from None

    @classmethod
    def load(cls, path: str | Path) -> Experiment:
        """Return the experiment of a YAML file, with file paths relative to it. Raises ConfigurationError."""
        import yaml

        path = Path(path)
        try:
            value = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            sentence = f"{path}: {error.strerror or error}; expected a YAML specification (a2a-ray init writes one)"
            raise ConfigurationError(sentence) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)  # omit the line itself: it may contain a key
            line = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
            reason = getattr(error, "problem", None) or getattr(error, "reason", error)
            raise ConfigurationError(f"{path}{line}: not YAML: {reason}") from None
        if isinstance(value, dict) and isinstance(value.get("openings"), dict) and "file" in value["openings"]:
            value["openings"]["file"] = str(path.parent / str(value["openings"]["file"]))
        return cls.parse(value, str(path))

    @cached_property
    def cells(self) -> list[Experiment]:
        """Return one experiment for each combination of swept settings; only this one without a sweep."""
        return [self._with(changes) for changes in self.changes]

    @cached_property
    def changes(self) -> list[dict[str, Any]]:
        """Return the changes of each cell: dotted setting -> value; `label` is the cell's own name."""
        if isinstance(self.sweep, list):
            return self.sweep or [{}]
        for key, values in self.sweep.items():
            if not values:
                raise ConfigurationError(f"sweep.{key}: []; expected at least one value")
        return [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]

    def _with(self, changes: Mapping[str, Any]) -> Experiment:
        value = self.model_dump(exclude_unset=True)
        value.pop("sweep", None)
        value.setdefault("protocol", self.protocol)
        for limit, other in (("max_turns", "max_rounds"), ("max_rounds", "max_turns")):
            if limit in changes and other not in changes:
                value.pop(other, None)  # the swept limit replaces that of the specification
        for key, setting in changes.items():
            if key != "label":
                change(value, key.split("."), setting, f"sweep.{key}")
        return Experiment.parse(value, f"sweep {_in_words(changes)}")

    @property
    def limit(self) -> int:
        """Return the most messages that a conversation can have."""
        return self.max_turns if self.max_turns is not None else (self.max_rounds or DEFAULT_ROUNDS) * len(self.agents)

    @cached_property
    def opening_contents(self) -> list[Any]:
        """Return the openings: texts, or float64 arrays of shape (d,). Raises ConfigurationError."""
        spec = self.openings
        if isinstance(spec, list):
            if not spec:
                raise ConfigurationError(
                    "openings: []; expected at least one, or leave the key out for the default openings"
                )
            try:
                return [checked_content(o, None, f"openings.{i}") for i, o in enumerate(spec)]
            except InvalidResponseError as error:
                raise ConfigurationError(str(error)) from None
        return read_openings({} if spec == "default" else dict(spec))

    @cached_property
    def named_observers(self) -> dict[str, dict[str, Any]]:
        """Return the settings of each observer by name: its `name`, or its kind (loops, loops-2, ...).

        Its judge is in `judges`. Raises ConfigurationError if two have the same name.
        """
        found: dict[str, dict[str, Any]] = {}
        kinds: Counter[str] = Counter()
        for i, observer in enumerate(self.observers):
            kind = observer.get("kind", "")
            kind = kind if isinstance(kind, str) else plain(kind)
            kinds[kind] += 1
            name = observer.get("name", kind if kinds[kind] == 1 else f"{kind}-{kinds[kind]}")
            if not isinstance(name, str) or name in found or ("name" in observer and not name):
                raise ConfigurationError(f"observers.{i}.name: {name!r}; expected a name that no other observer has")
            found[name] = {key: value for key, value in observer.items() if key not in ("name", "judge")}
        return found

    @cached_property
    def judges(self) -> dict[str, JudgeSpec]:
        """Return the judges by the name of their observer. Raises ConfigurationError."""
        pairs = zip(self.named_observers, self.observers, strict=True)
        judged = [(i, name, each["judge"]) for i, (name, each) in enumerate(pairs) if each.get("judge") is not None]
        return {name: JudgeSpec.parse(judge, f"observers.{i}.judge") for i, name, judge in judged}

    @cached_property
    def all_agents(self) -> list[tuple[str, AgentSpec]]:
        """Return the agents and then the judges, each with its place, such as "agents.0" or "observers.0.judge".

        Raises ConfigurationError for invalid judges.
        """
        places = {name: f"observers.{i}.judge" for i, name in enumerate(self.named_observers)}
        agents = [(f"agents.{i}", spec) for i, spec in enumerate(self.agents)]
        return [*agents, *((places[name], judge) for name, judge in self.judges.items())]

    def check(self) -> None:
        """Build every part once, on this machine, without loading models. Raises ConfigurationError."""
        seen: set[str] = set()
        for changes, cell in zip(self.changes, self.cells, strict=True):
            try:
                cell._check_parts(seen)
            except ConfigurationError as error:
                where = f" (in the setting {_in_words(changes)})" if changes else ""
                raise ConfigurationError(f"{self._source}: {error}{where}") from None

    def _check_parts(self, seen: set[str]) -> None:
        """Check the parts of one cell, except agents that were checked before."""
        names = tuple(spec.name for spec in self.agents)
        protocol = protocols.build(self.protocol, "protocol")
        check_part("protocol", protocol, "protocol")
        protocol.check(names)
        for i, condition in enumerate(self.termination):
            where = f"termination.{i}"
            check_part("termination condition", terminations.build(condition, where), where)
        built = []
        for i, (name, each) in enumerate(self.named_observers.items()):
            where = f"observers.{i}"
            observer = observers.build(each, where)
            check_part("observer", observer, where)
            if name in self.judges:
                self.judges[name].check_watch(observer, where)
            built.append((where, observer))
        vector = next((opening for opening in self.opening_contents if not isinstance(opening, str)), "")
        check_nudges(protocol, built, names, vector)
        check_judges(((name, judge.name) for name, judge in self.judges.items()), names)
        for where, spec in self.all_agents:
            key = json.dumps(spec.settings, sort_keys=True, default=identity)
            if key in seen:
                continue
            seen.add(key)
            agent = spec.build(where)
            if spec.step_timeout is not None and not spec.heavy:
                raise ConfigurationError(
                    f"{where}.limits.timeout: {spec.step_timeout:g}; a step beside the conversation cannot be"
                    " stopped; add placement: actor"
                )
            try:
                agent_traits(agent).check()
            except ConfigurationError as error:
                raise ConfigurationError(f"{where}: {error}") from None
            except Exception as error:
                raise ConfigurationError(f"{where}: its check failed: {type(error).__name__}: {error}") from error
        if self.analyze is not None:
            self._check_analyze()

    def _check_analyze(self) -> None:
        """Check that the objectives under `analyze` are consistent with those of the agents."""
        from a2a_ray.experiment.closed_form import equilibrium_analyzer

        try:
            equilibrium_analyzer(self)
        except ConfigurationError as error:
            raise ConfigurationError(f"analyze.{error}") from None

    def tasks(self) -> Iterator[Task]:
        """Yield every conversation, in order of ids."""
        for index, cell in enumerate(self.cells):
            for opening in range(len(cell.opening_contents)):
                for repeat in range(cell.repeats):
                    yield self._task(index, opening, repeat)

    def task(self, id: str) -> Task:
        """Return the conversation with this id. Raises KeyError for an unknown id."""
        cells = self.cells
        try:
            index, opening, repeat = map(int, id.split("-"))
            cell = cells[index]
            found = self._task(index, opening, repeat)
        except (ValueError, IndexError):
            raise KeyError(id) from None
        if found.id != id or opening >= len(cell.opening_contents) or repeat >= cell.repeats:
            raise KeyError(id)
        return found

    def _task(self, index: int, opening: int, repeat: int) -> Task:
        cell, widths = self.cells[index], self._widths
        id = f"{index:0{widths[0]}}-{opening:0{widths[1]}}-{repeat:0{len(str(cell.repeats - 1))}}"
        # Cells share their seeds: a sweep compares settings, not luck.
        return Task(id, index, opening, repeat, conversation_seed(cell.seed, f"{opening}/{repeat}"))

    @cached_property
    def _widths(self) -> tuple[int, int]:
        """Return the number of digits of cell numbers and of opening numbers."""
        return len(str(len(self.cells) - 1)), len(str(max(len(c.opening_contents) for c in self.cells) - 1))

    def size(self) -> tuple[int, int]:
        """Return the number of conversations and the most messages of agents in total."""
        counts = [len(c.opening_contents) * c.repeats for c in self.cells]
        return sum(counts), sum(n * c.limit for n, c in zip(counts, self.cells, strict=True))

    def openings_digest(self) -> str:
        """Return the SHA-256 of all openings."""
        digest = hashlib.sha256()
        for cell in self.cells:
            for opening in cell.opening_contents:
                digest.update(opening.encode() if isinstance(opening, str) else opening.tobytes())
                digest.update(b"\0")
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value for `parse`, with functions as module:name and the defaults that affect conversations."""
        decisive = {"seed": self.seed, "protocol": self.protocol, "openings": self.openings, "repeats": self.repeats}
        if self.max_turns is None and self.max_rounds is None:
            decisive["max_rounds"] = DEFAULT_ROUNDS
        value = {**self.model_dump(exclude_unset=True), **decisive}
        out: dict[str, Any] = json.loads(json.dumps(value, default=plain))
        return out


class Task(NamedTuple):
    """One conversation to run."""

    id: str
    cell: int
    opening: int
    repeat: int
    seed: int


def _in_words(changes: Mapping[str, Any]) -> str:
    """Return a cell's label or its changes for an error message, without values that could contain a key."""
    if "label" in changes:
        return str(changes["label"])
    hidden = ("api_key_env", "base_url")
    return ", ".join(
        k if isinstance(v, (dict, list)) or k.rpartition(".")[2] in hidden else f"{k}: {v}" for k, v in changes.items()
    )
