"""Types of agents' settings: pydantic checks them against the signature of a constructor."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

NonEmptyText: TypeAlias = Annotated[str, Field(min_length=1)]
Count: TypeAlias = Annotated[int, Field(ge=1, strict=True)]
"""A whole number of at least 1."""
NonNegative: TypeAlias = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
"""A finite number of at least 0: a temperature, seconds, money."""
Positive: TypeAlias = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
"""A finite number above 0."""
Fraction: TypeAlias = Annotated[float, Field(gt=0, le=1, strict=True)]
"""A number above 0 and at most 1: a share of the probability."""
