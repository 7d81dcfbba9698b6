"""Findings: frozen, and equal after a round trip through JSON or Arrow."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.core.errors import ConfigurationError
from a2a_ray.core.findings import Finding, canonical, from_row, schema, to_arrow
from tests.strategies import findings


@given(findings())
def test_json_round_trip(finding: Finding) -> None:
    again = Finding.from_dict(json.loads(json.dumps(finding.to_dict(), allow_nan=False)))
    assert again == finding
    assert again.key == finding.key


@given(st.lists(findings(), max_size=4))
def test_arrow_round_trip(given: list[Finding]) -> None:
    batch = to_arrow(given)
    assert batch.schema == schema()
    assert [from_row(row) for row in batch.to_pylist()] == given


def test_a_finding_cannot_be_changed() -> None:
    finding = Finding(conversation_id="c", analyzer="loops")
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.status = "loop"  # type: ignore[misc]


def test_equal_settings_have_one_key_whatever_their_order() -> None:
    one, other = (
        Finding(conversation_id="c", analyzer="loops", settings=settings)
        for settings in ({"a": 1, "b": None}, {"b": None, "a": 1})
    )
    assert one.key == other.key
    assert hash(one) == hash(other)
    assert canonical({}) == "{}"


def test_values_that_are_not_finite_become_none() -> None:
    found = Finding(
        conversation_id="c",
        analyzer="x",
        score=math.inf,
        interval=(0.0, math.inf),
        evidence={"series": np.array([1.0, math.nan])},
    )
    assert (found.score, found.interval, found.evidence) == (None, None, {"series": [1.0, None]})


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"conversation_id": "c", "analyzer": "x", "stauts": "loop"}, "unknown key 'stauts'. Did you mean 'status'?"),
        ({"analyzer": "x"}, "conversation_id"),
        ({"conversation_id": "c", "analyzer": "x", "evidence": {"a": object()}}, "evidence"),
    ],
)
def test_invalid_findings_are_refused(value: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        Finding.from_dict(value)
