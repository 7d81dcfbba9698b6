"""Settings of an OpenAI-compatible server: its address, the key, the price, and the name of the token limit."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator

from a2a_ray.agents.setting_types import NonEmptyText, NonNegative
from a2a_ray.core.errors import ConfigurationError

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "no-key"
"""Sent to a server that needs no key, because the client always sends one."""
_ITS_OWN_HOSTS = ("api.openai.com", "openai.azure.com")


def host_of(base_url: str) -> str:
    """Return the host of a server's address.

    Raises ConfigurationError for an invalid address. The error does not repeat an address that may hold a secret.
    """
    try:
        parts = urlsplit(base_url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if "@" in base_url or "?" in base_url or "#" in base_url:
        raise ConfigurationError(
            "base_url: has a name, a password or a query; expected http(s)://host[:port]/path only. Put the key into"
            " an environment variable and name it with api_key_env"
        )
    if not valid:
        raise ConfigurationError(f"base_url: {base_url!r}; expected an address such as http://127.0.0.1:8000/v1")
    return parts.hostname or ""


def _address(base_url: str | None) -> str | None:
    if base_url is not None:
        host_of(base_url)
    return base_url


def _variable_name(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        raise ConfigurationError(  # without the value: it may be the key itself
            "api_key_env: not the name of an environment variable; expected capitals, such as OPENAI_API_KEY."
            " A key itself must not stand in a specification"
        )
    return value


TokenPrice: TypeAlias = dict[Literal["input", "output"], NonNegative]
"""Money per million tokens."""
Address: TypeAlias = Annotated[str | None, AfterValidator(_address)]
VariableName: TypeAlias = Annotated[str | None, AfterValidator(_variable_name)]
StopTexts: TypeAlias = NonEmptyText | list[NonEmptyText] | None


def key_from(variable: str | None) -> str:
    """Return the key in an environment variable. Raises ConfigurationError, without the key, for an unusable one."""
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigurationError(
            f"api_key_env: {variable!r}; this environment variable is not set, or empty; expected the key in it. Set it"
            " on every node, or use api_key_env: null for a server that needs no key"
        )
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigurationError(f"api_key_env: {variable!r}; its value has spaces or characters that no key can have")
    return key


def limit_name(base_url: str, mode: str) -> str:
    """Return the request's name for the token limit.

    Newer models of OpenAI refuse `max_tokens` in chats; many other servers know no other name.
    """
    host = host_of(base_url)
    newer = host.endswith(tuple(f".{h}" for h in _ITS_OWN_HOSTS)) or host in _ITS_OWN_HOSTS
    return "max_completion_tokens" if newer and mode == "chat" else "max_tokens"


def cost_of(usage: dict[str, Any], price: TokenPrice) -> float:
    """Return the cost of a usage, in the currency of the price."""
    input, output = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    return float(input * price.get("input", 0.0) / 1e6 + output * price.get("output", 0.0) / 1e6)
