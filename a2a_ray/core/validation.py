"""Validation of settings by pydantic: against a signature, and with errors in the words of this package.

pydantic is imported on first use, so that `import a2a_ray` stays fast.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from a2a_ray.core.base_agent import BaseAgent
from a2a_ray.core.errors import AgentError, ConfigurationError, unknown

if TYPE_CHECKING:
    from pydantic import ValidationError

log = logging.getLogger(__name__)

Init = TypeVar("Init", bound=Callable[..., None])


def check_settings(
    factory: Callable[..., Any], settings: Mapping[str, Any], where: str, given: set[str] | frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the settings, checked and converted by the signature of `factory`.

    Args:
        where: prefix of the error, such as "agents.0"; may be empty.
        given: parameters that `settings` leaves out because the caller provides them unchecked.

    Raises:
        ConfigurationError: an unknown key, a missing key or an invalid value, with what is expected.
    """
    from pydantic import ValidationError

    model, open_ended = settings_model(factory)
    prefix = f"{where}." if where else ""
    known = [name for name in model.model_fields if name not in given]
    for key in settings:
        if key not in known and not open_ended:
            raise ConfigurationError(f"{prefix}{key}: " + unknown("key", key, known))
    missing = [n for n, f in model.model_fields.items() if f.is_required() and n not in settings and n not in given]
    if missing:
        raise ConfigurationError(
            f"{f'{where}: ' if where else ''}key {missing[0]!r} is missing. Keys: {', '.join(known)}"
        )
    fields = {k: v for k, v in settings.items() if k in model.model_fields}
    try:
        checked = model.__pydantic_validator__.validate_python(
            {**dict.fromkeys(given & set(model.model_fields)), **fields}
        )
    except ValidationError as error:
        if wrong := [e for e in error.errors() if e["loc"][0] not in given]:
            raise ConfigurationError(f"{prefix}{_sentence(wrong)}") from None
        return dict(settings)
    return {**settings, **{k: getattr(checked, k) for k in fields}}


def validated(init: Init) -> Init:
    """Make a constructor check its arguments against its signature, with ConfigurationError for invalid ones."""
    signature = inspect.signature(init)

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        settings = dict(signature.bind(self, *args, **kwargs).arguments)
        del settings["self"]
        init(self, **check_settings(init, settings, "", {"self"}))

    return checked  # type: ignore[return-value]


def turn_settings(
    agent: type[BaseAgent], settings: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> Mapping[str, Any]:
    """Return an agent's settings with the overrides of one turn. Raises AgentError for invalid overrides.

    agent: the class whose `turn_options` and constructor decide which overrides are valid.
    """
    if not options:
        return settings
    others = frozenset(settings_model(agent)[0].model_fields) - agent.turn_options
    try:
        return {**settings, **check_settings(agent, options, "options", others)}
    except ConfigurationError as error:
        raise AgentError(f"{where}: {error}") from None


def explain(error: ValidationError) -> str:
    """Return one sentence for the first invalid value: `<place>: <value>; expected <what>`."""
    return _sentence(error.errors())


def plainer(sentence: str) -> str:
    """Return a sentence of pydantic in the words of this package."""
    for theirs, ours in _PLAINER.items():
        sentence = sentence.replace(theirs, ours)
    return sentence


@cache
def settings_model(factory: Callable[..., Any]) -> tuple[Any, bool]:
    """Return the pydantic model of a signature, and whether the signature accepts any further key."""
    from typing import get_type_hints

    from pydantic import ConfigDict, create_model

    target = factory.__init__ if inspect.isclass(factory) else factory
    try:
        hints = get_type_hints(target, include_extras=True)
    except Exception:  # of a signature that cannot be resolved, only the names are checked
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


def _sentence(errors: Sequence[Any]) -> str:
    first = errors[0]
    key, value = first["loc"][:1], first["input"]
    same = [e for e in errors if e["loc"][:1] == key] if key else [first]
    is_union = len(same) > 1 and isinstance(first["loc"][-1], str)
    place = ".".join(str(p) for p in first["loc"][: -1 if is_union else None] if _is_key(p))
    if first["type"] == "missing":
        return f"key {place!r} is missing"
    if first["type"] == "value_error":  # a sentence of this package, which often begins with the place
        sentence = plainer(first["msg"])
        if not place or sentence.startswith(str(key[0])):
            return sentence
        return f"{place}{'.' if re.match('[a-z_]+: ', sentence) else ': '}{sentence}"
    return f"{place}: {repr(value)[:60]}; {_expected(same)}{_near(first)}"


def _is_key(part: int | str) -> bool:
    """Return whether a part of pydantic's location is a key or an index, not the name of a type."""
    return isinstance(part, int) or part.isidentifier()


def _expected(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what pydantic expected; several alternatives if it tried the members of a union."""
    sentences = [plainer(error["msg"]) for error in errors]
    first, *others = dict.fromkeys(sentence[:1].lower() + sentence[1:] for sentence in sentences)
    return " or ".join([first, *(sentence.removeprefix("expected ") for sentence in others)])


def _near(error: Mapping[str, Any]) -> str:
    """Return a hint if the value resembles one of the expected words."""
    words = re.findall("'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []
    near = difflib.get_close_matches(str(error["input"]), words, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""


_PLAINER = {
    "Value error, ": "",
    "Input should be a valid": "expected a",
    "Input should be": "expected",
    "List should have at least 1 item after validation, not 0": "expected at least 1",
    "String should have at least 1 character": "expected text that is not empty",
    "a dictionary": "a mapping",
    "a integer": "a whole number",
    "a string": "text",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    " or instance of AgentSpec": " with name and kind",
    " or instance of Price": " with input and output",
}
"""Words of pydantic, and ours."""
