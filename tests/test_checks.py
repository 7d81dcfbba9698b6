"""The checks of arguments that theory, inference and populations share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.analysis.checks import (
    check_array,
    check_count,
    check_covariance,
    check_noise,
    check_positive,
    check_probabilities,
    check_steps,
    step_bound,
)
from a2a_ray.core.errors import ConfigurationError
from tests.strategies import random_covariance


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([np.float32, np.float64]))
def test_covariances_of_examples_pass(d: int, n: int, seed: int, dtype: Any) -> None:
    x = np.random.default_rng(seed).normal(size=(3, n, d)).astype(dtype)
    given_ = x.mT @ x / n
    found = check_covariance(given_, shape=("...", "d", "d"))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, found.mT)
    np.testing.assert_allclose(found, given_, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(check_covariance(given_[0]), found[0])
    assert not np.shares_memory(found, given_)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_below_the_bound_every_step_contracts(d: int, seed: int) -> None:
    s = np.stack([c * random_covariance(np.random.default_rng(seed), d, d) for c in (0.1, 1, 7)])
    bounds = step_bound(s)
    np.testing.assert_allclose(bounds, [20, 2, 2 / 7])
    for eta, contracts in ((0.999 * bounds, True), (1.001 * bounds, False)):
        norms = np.linalg.norm(np.eye(d) - eta[:, None, None] * s, ord=2, axis=(1, 2))
        assert ((norms < 1) == contracts).all()
        if contracts:
            np.testing.assert_array_equal(check_steps(eta, s), eta)
        else:
            with pytest.raises(
                ConfigurationError, match=r"step_sizes\[0\]: 20.02; expected less than 20, which is 2 / lambda_max"
            ):
                check_steps(eta, s)
    np.testing.assert_array_equal(check_steps(0.1, s), [0.1, 0.1, 0.1])
    assert step_bound(np.zeros((2, 2))) == math.inf
    assert check_steps(1e9, np.zeros((2, 2))).shape == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_array([[1.0]], "x", ("d",)), r"x: shape \(1, 1\); expected \(d,\)"),
        (lambda: check_array([], "x", ("d",)), r"x: shape \(0,\); expected \(d,\)"),
        (lambda: check_array([[1, 2], [3]], "x", ("n", "d")), r"x: \[\[1, 2\], \[3\]\]; expected numbers"),
        (lambda: check_array(None, "x", ("d",)), r"x: "),
        (lambda: check_array(1.0, "x", ("...", "d")), r"x: shape \(\); expected \(\.\.\., d\)"),
        (lambda: check_array([1.0, -np.inf], "x", (2,)), r"x\[1\]: -inf; expected finite"),
        (lambda: check_covariance(np.ones((2, 3))), r"covariance: shape \(2, 3\); expected \(d, d\)"),
        (lambda: check_covariance(np.ones((2, 3, 3))), r"covariance: shape \(2, 3, 3\); expected \(d, d\)"),
        (lambda: check_covariance([[1, 0.1], [0, 1]]), r"covariance: not symmetric: .* are 0.1 and 0; expected a symm"),
        (
            lambda: check_covariance([[[1, 0], [0, 1]], [[0, 2], [2, 0]]], "s", ("...", "d", "d")),
            r"s\[1\]: smallest eigenvalue -2; expected a positive semi-definite matrix",
        ),
        (lambda: check_positive([1, -2], "eta", (2,)), r"eta\[1\]: -2; expected a number above 0"),
        (lambda: check_positive([1, 2], "eta"), r"eta: shape \(2,\); expected \(\)"),
        (lambda: check_steps([0.1, 0.1], np.eye(2)), r"step_sizes: shape \(2,\); expected \(\)"),
        (lambda: check_count(True, "k"), "k: True; expected a whole number of at least 1"),
        (lambda: check_count(5, "k", 1, 4), "k: 5; expected a whole number of at least 1 and at most 4"),
        (lambda: check_probabilities([0.2, 0.2], "p", 2), r"p: \[0.2, 0.2\]; .* sum to 1"),
        (lambda: check_noise("loud", "noise", 2, 2), "noise: loud"),
        (lambda: check_noise(np.ones(2), "noise", 2, 2), r"noise: shape \(2,\); expected \(2, 2, 2\)"),
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_what_is_good_comes_back_in_float64() -> None:
    assert check_array([[1, 2]], "x", ("n", "d")).dtype == np.float64
    assert check_array(np.ones((4, 5, 2), np.float32), "x", ("...", 2)).shape == (4, 5, 2)
    assert check_count(np.int64(3), "k") == 3
    assert check_probabilities([0.5, 0.5 + 1e-12], "p", 2).sum() == pytest.approx(1, abs=1e-15)
    np.testing.assert_array_equal(check_noise(2, "noise", 2, 2), [2 * np.eye(2)] * 2)
    np.testing.assert_array_equal(check_noise(np.eye(2), "noise", 3, 2), [np.eye(2)] * 3)
    nearly = np.array([[1.0, 0.5], [0.5 + 1e-12, 1.0]])
    found = check_covariance(nearly)
    assert found[0, 1] == found[1, 0]
