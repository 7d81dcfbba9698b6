"""Parts by name: built in, from other packages' entry points, or any `module:attr`. Nothing is imported before use."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import ConfigurationError, plainer, unknown

log = logging.getLogger(__name__)


class Registry:
    """Names of one sort of part and where each lives.

    group: the entry-point group in which other packages announce theirs, e.g. `a2a_ray.agents`.
    builtin: name -> "module:attr".
    """

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self.what = group.rsplit(".", 1)[-1].removesuffix("s")
        self._paths = dict(builtin)
        self._found = False

    def names(self) -> list[str]:
        """All names that exist, plug-ins included."""
        if not self._found:
            from importlib.metadata import entry_points

            for point in entry_points(group=self.group):
                self._paths.setdefault(point.name, point.value)
            self._found = True
        return sorted(self._paths)

    def register(self, name: str, path: str) -> None:
        """Adds a name in this process; `path` is "module:attr"."""
        self._paths[name] = path

    def get(self, name: str | Callable[..., Any]) -> Any:
        """The class or factory of a name or of a "module:attr". Raises ConfigurationError: what is wrong and what there
        is.

        A class or factory itself is given back as it is.
        """
        if not isinstance(name, str):
            return name
        if name in self._paths or name in self.names():
            return load(self._paths[name], f"{self.what} {name!r}")
        if ":" in name:
            return load(name, f"{self.what} {name!r}")
        raise ConfigurationError(unknown(f"{self.what} kind", name, [*self.names(), "module:attr"]))

    def keys(self, name: str | Callable[..., Any]) -> dict[str, bool]:
        """The settings that a kind takes, and whether each must be given."""
        return {k: f.is_required() for k, f in _settings_model(self.get(name))[0].model_fields.items()}

    def takes(self, name: str | Callable[..., Any], key: str) -> bool:
        """Whether a kind takes a setting of this name."""
        model, open_ended = _settings_model(self.get(name))
        return open_ended or key in model.model_fields

    def build(self, config: Mapping[str, Any], where: str, **fixed: Any) -> Any:
        """The part that `config` describes: its `kind` names it, all other keys are its settings.

        Each setting is checked against the signature: misspelt keys, missing ones and wrong types raise
        ConfigurationError that names `where`, the key, the value and what is expected. `fixed` adds settings that need
        no check.
        """
        settings = {k: v for k, v in config.items() if k != "kind"}
        if "kind" not in config:
            raise ConfigurationError(f"{where}: no 'kind'; expected one of {', '.join(self.names())} or module:attr")
        try:
            factory = self.get(config["kind"])
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}.kind: {error}") from None
        checked = check_settings(factory, settings, where, set(fixed))
        try:
            return factory(**checked, **fixed)
        except ConfigurationError as error:
            raise ConfigurationError(f"{where}: {error}") from error
        except Exception as error:  # somebody's own class
            raise ConfigurationError(
                f"{where}: {config['kind']} cannot be made: {type(error).__name__}: {error}"
            ) from error


def load(path: str, what: str) -> Any:
    """The object at "module:attr". Raises ConfigurationError where the module or the attribute does not exist."""
    module, _, attribute = path.partition(":")
    if not attribute:
        raise ConfigurationError(f"{what}: {path!r}; expected module:attr, such as my_package.my_module:MyClass")
    here = str(Path.cwd())
    if here not in sys.path:  # a user's own module beside the specification
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"{what}: cannot import {module!r}: {error}. Is it installed, or in the current folder?"
        ) from error
    except AttributeError as error:
        raise ConfigurationError(f"{what}: module {module!r} has no {attribute!r}") from error
    except Exception as error:  # a broken plug-in is told, with its cause, and takes nothing else down
        raise ConfigurationError(f"{what}: importing {module!r} failed: {type(error).__name__}: {error}") from error


def check_settings(
    factory: Callable[..., Any], settings: Mapping[str, Any], where: str, given: set[str]
) -> dict[str, Any]:
    """`settings` checked against the signature of `factory` by pydantic. Raises ConfigurationError."""
    from pydantic import ValidationError

    model, open_ended = _settings_model(factory)
    known = [name for name in model.model_fields if name not in given]
    for key in settings:
        if key not in known and not open_ended:
            raise ConfigurationError(f"{where}.{key}: " + unknown("key", key, known))
    missing = [n for n, f in model.model_fields.items() if f.is_required() and n not in settings and n not in given]
    if missing:
        raise ConfigurationError(f"{where}: key {missing[0]!r} is missing. Keys: {', '.join(known)}")
    fields = {k: v for k, v in settings.items() if k in model.model_fields}
    try:
        checked = model.__pydantic_validator__.validate_python(
            {**dict.fromkeys(given & set(model.model_fields)), **fields}
        )
    except ValidationError as error:
        wrong = [e for e in error.errors() if e["loc"][0] not in given]
        if wrong:
            key = str(wrong[0]["loc"][0])
            raise ConfigurationError(
                f"{where}.{key}: {settings[key]!r}; {expected(e for e in wrong if e['loc'][0] == key)}"
            ) from None
        return dict(settings)
    return {**settings, **{k: getattr(checked, k) for k in fields}}


def expected(errors: Iterable[Mapping[str, Any]]) -> str:
    """What pydantic expected, as the second half of a sentence; several where it tried the members of a union."""
    sentences = []
    for error in errors:
        sentence = plainer(error["msg"])
        sentences.append(sentence[:1].lower() + sentence[1:])
    first, *others = dict.fromkeys(sentences)
    return " or ".join([first, *(sentence.removeprefix("expected ") for sentence in others)])


@cache
def _settings_model(factory: Callable[..., Any]) -> tuple[Any, bool]:
    from typing import get_type_hints

    from pydantic import ConfigDict, create_model

    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = get_type_hints(target)
    except Exception:  # a signature that cannot be resolved is checked by name only
        log.debug("no type hints for %s", factory, exc_info=True)
        hints = {}
    fields: dict[str, Any] = {}
    open_ended = False
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            open_ended = open_ended or parameter.kind == parameter.VAR_KEYWORD
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    return create_model("Settings", __config__=config, **fields), open_ended


agents = Registry(
    "a2a_ray.agents",
    {
        "echo": "a2a_ray.agents.echo:EchoAgent",
        "function": "a2a_ray.agents.function:FunctionAgent",
        "replay": "a2a_ray.agents.replay:ReplayAgent",
        "lsa": "a2a_ray.agents.lsa.lsa_agent:LSAAgent",
        "hf": "a2a_ray.agents.hf.hf_agent:HFAgent",
        "openai": "a2a_ray.agents.openai.openai_agent:OpenAIAgent",
        "regression": "a2a_ray.agents.lsa.regression:RegressionAgent",
    },
)
protocols = Registry(
    "a2a_ray.protocols",
    {
        "alternating": "a2a_ray.protocols.alternating:Alternating",
        "simultaneous": "a2a_ray.protocols.simultaneous:Simultaneous",
        "adaptive": "a2a_ray.protocols.adaptive:Adaptive",
        "newton_helper": "a2a_ray.protocols.newton_helper:NewtonHelper",
    },
)
observers = Registry(
    "a2a_ray.observers",
    {
        "exact_repetition": "a2a_ray.analysis.text.exact_repetition:ExactRepetitionRule",
        "loops": "a2a_ray.analysis.loops:LoopDetector",
    },
)
terminations = Registry(
    "a2a_ray.terminations",
    {
        "max_turns": "a2a_ray.core.termination:MaxTurns",
        "max_tokens": "a2a_ray.core.termination:MaxTokens",
        "text_mention": "a2a_ray.core.termination:TextMention",
        "converged": "a2a_ray.core.termination:Converged",
    },
)
