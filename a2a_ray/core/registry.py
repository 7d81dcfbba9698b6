"""Parts by name: built in, from entry points of other packages, or any `module:attr`. Imported on first use."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from a2a_ray.core.errors import ConfigurationError, unknown
from a2a_ray.core.validation import check_settings, settings_model

log = logging.getLogger(__name__)


class Registry:
    """The names of one sort of part, and the module of each.

    group: the entry-point group where other packages register theirs, such as `a2a_ray.agents`.
    builtin: name -> "module:attr".
    """

    def __init__(self, group: str, builtin: Mapping[str, str]) -> None:
        self.group = group
        self.what = group.rsplit(".", 1)[-1].removesuffix("s")
        self._paths = dict(builtin)
        self._found = False

    def names(self) -> list[str]:
        """Return all known names, including plug-ins."""
        if not self._found:
            from importlib.metadata import entry_points

            for point in entry_points(group=self.group):
                self._paths.setdefault(point.name, point.value)
            self._found = True
        return sorted(self._paths)

    def register(self, name: str, path: str) -> None:
        """Add a name in this process; `path` is "module:attr"."""
        self._paths[name] = path

    def get(self, name: str | Callable[..., Any]) -> Any:
        """Return the class or factory of a name or of a "module:attr"; a class or factory is returned as it is.

        Raises ConfigurationError, with the known names.
        """
        if not isinstance(name, str):
            return name
        if name in self._paths or name in self.names():
            return load(self._paths[name], f"{self.what} {name!r}")
        if ":" in name:
            return load(name, f"{self.what} {name!r}")
        raise ConfigurationError(unknown(f"{self.what} kind", name, [*self.names(), "module:attr"]))

    def keys(self, name: str | Callable[..., Any]) -> dict[str, bool]:
        """Return the settings of a kind, and whether each is required."""
        return {k: f.is_required() for k, f in settings_model(self.get(name))[0].model_fields.items()}

    def takes(self, name: str | Callable[..., Any], key: str) -> bool:
        """Return whether a kind has a setting of this name."""
        model, open_ended = settings_model(self.get(name))
        return open_ended or key in model.model_fields

    def build(self, config: Mapping[str, Any], where: str, **fixed: Any) -> Any:
        """Return the part that `config` describes: `kind` names it, all other keys are its settings.

        Settings are checked against the signature. Unknown or missing keys and invalid values raise ConfigurationError
        with `where`, the key, the value and what is expected. `fixed` adds unchecked settings.
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
    """Return the object at "module:attr". Raises ConfigurationError if the module or the attribute does not exist."""
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
    except Exception as error:  # a broken plug-in is reported with its cause and breaks nothing else
        raise ConfigurationError(f"{what}: importing {module!r} failed: {type(error).__name__}: {error}") from error


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
