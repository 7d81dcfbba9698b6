"""What calls took: requests, tokens and money, as the agents report them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple


class Spent(NamedTuple):
    """Sums over calls. requests: all that were sent, retries included."""

    cost: float = 0.0
    tokens: int = 0
    requests: int = 0

    def plus(self, other: Spent) -> Spent:
        """Return the sum."""
        return Spent(self.cost + other.cost, self.tokens + other.tokens, self.requests + other.requests)


NOTHING = Spent()


def usage_number(usage: Mapping[str, Any], key: str) -> Any:
    """Return a number of a response's usage; 0 if it is missing, not finite or not a number."""
    value = usage.get(key, 0)
    return value if isinstance(value, Real) and math.isfinite(value) else 0


def spent_by(usage: Mapping[str, Any]) -> Spent:
    """Return what a response with this usage took."""
    tokens = int(usage_number(usage, "input_tokens") + usage_number(usage, "output_tokens"))
    return Spent(float(usage_number(usage, "cost")), tokens, max(1, int(usage_number(usage, "requests"))))
