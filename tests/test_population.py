"""Populations: equal to agents one by one, in any part and any block; noise is checked by its moments."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from a2a_ray.agents.lsa.lsa_agent import LSAAgent
from a2a_ray.analysis.dynamics.affine import linear_agents
from a2a_ray.analysis.dynamics.pair_population import PairPopulation, States, residual_norms
from a2a_ray.analysis.dynamics.pair_simulation import check_pairs, simulate_pairs
from a2a_ray.analysis.dynamics.pair_sources import BLOCK, DrawnPairs, GivenPairs
from a2a_ray.analysis.dynamics.rounds import alternating
from a2a_ray.core.conversation import Conversation
from a2a_ray.core.errors import ConfigurationError
from a2a_ray.protocols.alternating import Alternating
from a2a_ray.protocols.simultaneous import Simultaneous
from tests.strategies import populations

TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def conversation_states(population: PairPopulation, pair: int, rounds: int) -> tuple[Any, Any]:
    """Return the states of one pair, (rounds, d) after W's and after U's turn, from two agents in a conversation."""
    w, u = population.settings(pair)
    start = np.asarray(population.start[pair] if population.start.ndim == 2 else population.start)
    agents = [LSAAgent("w", **w), LSAAgent("u", **u)]
    simultaneous = population.order == "simultaneous"
    protocol = Simultaneous("mean") if simultaneous else Alternating()
    turns = Conversation(agents, protocol, start, max_rounds=rounds).run().turns
    combined = [m.content for m in turns if m.kind == "combine"]
    if simultaneous:
        mean = np.array([*combined, np.mean([m.content for m in turns[-2:]], axis=0)][:rounds])
        return mean, mean
    return tuple(np.array([m.content for m in turns if m.sender == name]) for name in "wu")


def relative_difference(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest expected entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def drawn(pairs: int = 700, dim: int = 4, **settings: Any) -> PairPopulation:
    defaults: dict[str, Any] = {"step_w": 0.7, "step_u": 0.4, "dtype": "float64"}
    return PairPopulation(DrawnPairs(pairs, dim, seed=5, condition=(6.0, 3.0)), **{**defaults, **settings})


def noisy(pairs: int = 700, **settings: Any) -> PairPopulation:
    return drawn(pairs, **{"noise_w": 0.3, "noise_u": 0.1, "noise_seed": 9, **settings})


# --- agents one by one


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(data=st.data(), rounds=st.integers(1, 70))
def test_every_round_is_that_of_the_agents(order: Any, dtype: Any, data: st.DataObject, rounds: int) -> None:
    population = data.draw(populations(order=order, dtype=dtype))
    pair = data.draw(st.integers(0, population.pairs - 1))
    w, u = conversation_states(population, pair, rounds)
    states = simulate_pairs(population, rounds, every=1)
    assert states.after_w is not None
    assert states.after_u is not None
    assert states.after_w.dtype == getattr(torch, dtype)
    assert states.rounds.tolist() == list(range(1, rounds + 1))
    assert relative_difference(states.after_w[pair], w) <= TOLERANCE[dtype]
    assert relative_difference(states.after_u[pair], u) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_many_rounds_in_twenty_dimensions_are_those_of_the_agents(dtype: Any) -> None:
    population = PairPopulation(DrawnPairs(9, 20, seed=1, condition=20.0), 0.9, 0.05, dtype=dtype)
    w, u = conversation_states(population, 4, 500)
    states = simulate_pairs(population, 500, every=1)
    assert relative_difference(states.after_w[4], w) <= TOLERANCE[dtype]  # type: ignore[index]
    assert relative_difference(states.after_u[4], u) <= TOLERANCE[dtype]  # type: ignore[index]


def test_float32_does_not_drift_where_nobody_pulls() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 50, 1, 3))  # prompts of one example: what is across both is left as it was
    covariances = np.einsum("abni,abnj->abij", x, x)
    source = GivenPairs(*covariances, rng.normal(size=(50, 3)), rng.normal(size=(50, 3)))
    steps = 1.5 / np.linalg.eigvalsh(covariances)[..., -1]
    exact = PairPopulation(source, *steps, start=rng.normal(size=3), dtype="float64")
    found, expected = (simulate_pairs(p, 2000, every=500) for p in (replace(exact, dtype="float32"), exact))
    for name in ("after_w", "after_u"):
        assert relative_difference(getattr(found, name), getattr(expected, name)) <= 2e-6


@given(populations(pairs=4, dtype="float64"), st.sampled_from(["both", "w", "u"]), st.data())
def test_kept_rounds_are_those_of_all_rounds(population: PairPopulation, after: Any, data: st.DataObject) -> None:
    rounds = data.draw(st.integers(1, 60))
    every = data.draw(st.none() | st.integers(1, rounds))
    whole = simulate_pairs(population, rounds, every=1)
    chosen = whole.rounds % (every or rounds) == 0
    states = simulate_pairs(population, rounds, every=every, after=after)
    assert torch.equal(states.rounds, whole.rounds[chosen])
    for name in ("after_w", "after_u"):
        kept = getattr(states, name)
        if after in ("both", name[-1]):
            assert relative_difference(kept, getattr(whole, name)[:, chosen]) <= 1e-12
        else:
            assert kept is None


def test_pairs_converge_to_the_closed_form() -> None:
    population = drawn(300)
    states = simulate_pairs(population, 3000)
    pairs = population.source.take(0, 300)
    for i in (0, 255, 256, 299):
        s_w, s_u, w, u = (v[i] for v in pairs)
        e_w, e_u = alternating(linear_agents([s_w, s_u], [w, u], [0.7, 0.4])).residuals
        assert relative_difference(states.residual_w[i, 0], e_w) <= 1e-10
        assert relative_difference(states.residual_u[i, 0], e_u) <= 1e-10


# --- pairs are the same in any part


@pytest.mark.parametrize("eigenvectors", ["own", "pair", "all"])
def test_a_drawn_pair_depends_on_its_seed_and_number_only(eigenvectors: Any) -> None:
    whole = DrawnPairs(1000, 3, seed=2, condition=9.0, eigenvectors=eigenvectors)
    everything = whole.take(0, 1000)
    shorter = DrawnPairs(620, 3, seed=2, condition=9.0, eigenvectors=eigenvectors)
    later = DrawnPairs(30, 3, seed=2, condition=9.0, eigenvectors=eigenvectors, first=590)
    for name in everything._fields:
        expected = getattr(everything, name)
        assert np.array_equal(getattr(shorter.take(500, 620), name), expected[500:620])
        assert np.array_equal(getattr(later.take(10, 30), name), expected[600:620])
        assert np.array_equal(getattr(whole.part(250, 900).take(5, 600), name), expected[255:850])
    assert len(np.unique(everything.objective_w[:, 0])) == 1000
    other = DrawnPairs(1000, 3, seed=3, condition=9.0).take(0, 1)
    assert not np.allclose(other.covariance_w, everything.covariance_w[0])


def test_drawn_pairs_have_the_requested_spectra_norms_and_angles() -> None:
    settings: dict[str, Any] = {"pairs": 300, "dim": 5, "seed": 1, "angles": (20.0, 95.0), "norms": (2.0, 0.5)}
    pairs = DrawnPairs(condition=(7.0, 2.0), **settings).take(0, 300)
    for covariance, condition in ((pairs.covariance_w, 7.0), (pairs.covariance_u, 2.0)):
        assert np.allclose(np.linalg.eigvalsh(covariance), np.geomspace(1 / condition, 1, 5), atol=1e-14)
        # Rotations are uniform: their mean covariance is the mean eigenvalue times I, here to 4 standard errors.
        spread = covariance.std(axis=0) / np.sqrt(300)
        expected = np.geomspace(1 / condition, 1, 5).mean() * np.eye(5)
        assert (np.abs(covariance.mean(axis=0) - expected) <= 4 * spread).all()
    w, u = pairs.objective_w, pairs.objective_u
    assert np.allclose(np.linalg.norm(w, axis=1), 2.0)
    assert np.allclose(np.linalg.norm(u, axis=1), 0.5)
    assert np.allclose(np.degrees(np.arccos((w * u).sum(axis=1))), 75.0)
    assert np.linalg.norm(w.mean(axis=0)) < 4 * 2.0 / np.sqrt(300)
    turned = DrawnPairs(condition=(7.0, 2.0), **{**settings, "angles": (110.0, 185.0)}).take(0, 300)
    assert np.allclose((turned.objective_w * w).sum(axis=1), 0, atol=1e-14)  # the twin, by 90 degrees
    assert np.array_equal(turned.covariance_w, pairs.covariance_w)
    shared = DrawnPairs(eigenvalues=[[1, 2, 3, 4, 5], [0, 0, 0, 1, 9]], eigenvectors="pair", **settings).take(0, 300)
    product = shared.covariance_w @ shared.covariance_u
    assert np.allclose(product, product.swapaxes(1, 2), atol=1e-12)  # common eigenvectors: they commute
    assert np.linalg.matrix_rank(shared.covariance_u).max() == 2
    same = DrawnPairs(eigenvectors="all", condition=4.0, **settings).take(0, 300)
    assert (same.covariance_w == same.covariance_w[0]).all()
    assert not np.allclose(same.covariance_w[0], same.covariance_u[0])
    assert np.linalg.matrix_rank(same.objective_w) == 5  # objectives are each pair's own


@pytest.mark.parametrize("make", [drawn, noisy])
def test_parts_give_the_same_states_as_the_whole(make: Any) -> None:
    population = make(start=np.random.default_rng(0).normal(size=(700, 4)), step_u=np.linspace(0.1, 1.9, 700))
    whole = simulate_pairs(population, 40, every=4)
    parts = [simulate_pairs(population.part(a, b), 40, every=4) for a, b in ((0, 100), (100, 513), (513, 700))]
    assert [p.first for p in parts] == [0, 100, 513]
    nested = simulate_pairs(population.part(50, 600).part(30, 40), 40, every=4)
    for name in ("after_w", "after_u", "objective_w", "objective_u"):
        expected = getattr(whole, name)
        assert relative_difference(torch.cat([getattr(s, name) for s in parts]), expected) <= 1e-13
        assert relative_difference(getattr(nested, name), expected[80:90]) <= 1e-13


def test_reduced_blocks_are_put_together() -> None:
    population = drawn(700)
    whole = simulate_pairs(population, 30, every=5)
    seen = []

    def reduce(states: States) -> dict[str, torch.Tensor]:
        seen.append((states.first, len(states.objective_w)))
        return {"last": states.after_u[:, -1], **residual_norms(states)}  # type: ignore[index]

    got = simulate_pairs(population, 30, every=5, reduce=reduce)
    assert seen == [(0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, 700 - 2 * BLOCK)]
    assert torch.equal(got["last"], whole.after_u[:, -1])  # type: ignore[index]
    for name, expected in residual_norms(whole).items():
        assert torch.equal(got[name], expected)
        assert expected.shape == (700, 6)
    assert torch.allclose(got["w"], (whole.after_w - whole.objective_w[:, None]).square().sum(-1).sqrt())  # type: ignore[operator]
    assert set(residual_norms(simulate_pairs(population, 3, after="u"))) == {"u"}


# --- given pairs


def test_arrays_files_and_tensors_give_the_same_states(tmp_path: Path) -> None:
    pairs = DrawnPairs(600, 3, condition=5.0).take(0, 600)
    paths = [tmp_path / f"{name}.npy" for name in pairs._fields]
    for path, value in zip(paths, pairs, strict=True):
        np.save(path, value)
    (tmp_path / "start").write_bytes(np.ones((600, 3)).tobytes())
    start = np.memmap(tmp_path / "start", np.float64, "r", shape=(600, 3))
    expected = simulate_pairs(drawn(600, 3, start=np.ones(3)), 1)  # only to have a shape
    sources = {
        "arrays": GivenPairs(*pairs),
        "files": GivenPairs(*paths),
        "mapped": GivenPairs(*(np.load(path, mmap_mode="r") for path in paths)),
        "tensors": GivenPairs(*(torch.from_numpy(v.copy()) for v in pairs)),
        "lists": GivenPairs(*(v.tolist() for v in pairs)),
    }
    found = {
        k: simulate_pairs(PairPopulation(v, 0.7, 0.4, dtype="float64", start=start), 50) for k, v in sources.items()
    }
    for states in found.values():
        assert states.after_u.shape == expected.after_u.shape  # type: ignore[union-attr]
        assert torch.equal(states.after_u, found["arrays"].after_u)  # type: ignore[arg-type]
    files = PairPopulation(GivenPairs(*paths), step_w=np.full(600, 0.7), start=str(paths[2])).part(10, 300)
    assert len(pickle.dumps(files)) < 5000  # paths, not data
    again = simulate_pairs(pickle.loads(pickle.dumps(files)), 9)
    assert torch.equal(again.after_w, simulate_pairs(files, 9).after_w)  # type: ignore[arg-type]
    assert torch.equal(again.objective_w, torch.from_numpy(pairs.objective_w[10:300]).float())


def test_a_value_shared_by_all_pairs_needs_no_axis_of_pairs() -> None:
    pairs = DrawnPairs(5, 3, condition=5.0).take(0, 5)
    shared = GivenPairs(pairs.covariance_w[0], pairs.covariance_u, pairs.objective_w[0], pairs.objective_u[1])
    repeated = GivenPairs(
        *(np.stack([v] * 5) for v in (pairs.covariance_w[0],)),
        pairs.covariance_u,
        *(np.stack([v] * 5) for v in (pairs.objective_w[0], pairs.objective_u[1])),
    )
    for make in (lambda s: PairPopulation(s, dtype="float64"), lambda s: PairPopulation(s, dtype="float64").part(2, 4)):
        a, b = (simulate_pairs(make(s), 20, every=1) for s in (shared, repeated))
        assert torch.equal(a.after_w, b.after_w)  # type: ignore[arg-type]
        assert torch.equal(a.objective_u, b.objective_u)


# --- noise


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_mean_and_covariance_of_noisy_states_are_exact(order: Any) -> None:
    """Compare 30 000 pairs that differ only in their noise with the recursion of the moments, entry by entry."""
    count, rounds, d = 30_000, 36, 3
    one = DrawnPairs(1, d, seed=4, condition=5.0).take(0, 1)
    source = GivenPairs(
        one.covariance_w[0], one.covariance_u[0], one.objective_w[0], np.tile(one.objective_u, (count, 1))
    )
    population = PairPopulation(source, 0.5, 0.9, order=order, noise_w=0.3, noise_u=0.1, dtype="float64")
    maps = [
        (np.eye(d) - eta * s, eta * s @ w)
        for s, w, eta in (
            (one.covariance_w[0], one.objective_w[0], 0.5),
            (one.covariance_u[0], one.objective_u[0], 0.9),
        )
    ]
    turns = [(*maps[0], 0.3**2 * np.eye(d)), (*maps[1], 0.1**2 * np.eye(d))]
    if order == "simultaneous":
        turns = [tuple((a + b) / (2 if i < 2 else 4) for i, (a, b) in enumerate(zip(*turns, strict=True)))]
    mean, covariance, expected = np.zeros(d), np.zeros((d, d)), []
    for _ in range(rounds):
        for m, b, q in turns:
            mean, covariance = m @ mean + b, m @ covariance @ m.T + q
            expected.append((mean, covariance))
    states = simulate_pairs(population, rounds, every=1)
    after = [states.after_w, states.after_u][: len(turns)]
    for t in (0, 1, 31, 32, 35):  # noise is drawn 32 rounds at a time
        for turn, kept in enumerate(after):
            x = kept[:, t].numpy()  # type: ignore[index]
            mean, covariance = expected[t * len(turns) + turn]
            variances = np.diagonal(covariance)
            assert (np.abs(x.mean(axis=0) - mean) <= 4.5 * np.sqrt(variances / count)).all()
            error = np.sqrt((np.outer(variances, variances) + covariance**2) / count)
            assert (np.abs(np.cov(x, rowvar=False) - covariance) <= 4.5 * error).all()
    assert after[0] is not None
    half = after[0][:, -1, 0].numpy() - expected[-len(turns)][0][0]
    assert abs(np.mean(half[:-1] * half[1:]) / half.var()) < 4.5 / np.sqrt(count)  # neighbours have noise of their own


def test_noise_is_a_prefix_and_depends_on_its_seed() -> None:
    long, short = simulate_pairs(noisy(), 70, every=1), simulate_pairs(noisy(), 45, every=1)
    assert torch.equal(long.after_u[:, :45], short.after_u)  # type: ignore[index,arg-type]
    other = simulate_pairs(noisy(noise_seed=10), 21, every=1)
    assert not torch.equal(other.after_u[:, 0], short.after_u[:, 0])  # type: ignore[index]
    first = (short.after_w[:, 0] - simulate_pairs(drawn(), 1).after_w[:, 0]) / 0.3  # type: ignore[index,operator]
    assert len(torch.unique(first)) == first.numel()  # no two blocks have the same stream
    quiet = simulate_pairs(noisy(noise_w=0.0, noise_u=0.2), 1)
    assert torch.allclose(quiet.after_w, simulate_pairs(drawn(), 1).after_w, rtol=1e-14)  # type: ignore[arg-type]


# --- bad input

EYE = np.stack([np.eye(2)] * 600)
ONES = np.ones((600, 2))


def wrong(pair: int, value: Any) -> Any:
    out = EYE.copy()
    out[pair] = value
    return out


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DrawnPairs(0, 2), "pairs: 0; expected a whole number of at least 1"),
        (lambda: DrawnPairs(3, 1), "dim: 1; expected a whole number of at least 2"),
        (lambda: DrawnPairs(3, 2, seed=-1), "seed: -1"),
        (lambda: DrawnPairs(3, 2, condition=0.5), "condition: 0.5; expected at least 1"),
        (lambda: DrawnPairs(3, 2, condition=(1, 2, 3)), "condition: shape"),  # type: ignore[arg-type]
        (lambda: DrawnPairs(3, 2, norms=-1.0), "norms: -1.0; expected at least 0"),
        (lambda: DrawnPairs(3, 2, angles=(0, np.nan)), "angles"),
        (lambda: DrawnPairs(3, 2, eigenvalues=[1, 2, 3]), "eigenvalues: shape"),
        (lambda: DrawnPairs(3, 2, eigenvalues=[0, 0]), "none below 0 and at least one above"),
        (lambda: DrawnPairs(3, 2, eigenvalues=[1, 2], condition=3.0), "both given"),
        (lambda: DrawnPairs(3, 2, eigenvectors="some"), "eigenvectors: 'some'; expected own, pair or all"),  # type: ignore[arg-type]
        (lambda: GivenPairs(EYE, EYE[:5], ONES, ONES), "number of pairs differs: covariance_w: 600, covariance_u: 5"),
        (lambda: GivenPairs(EYE, EYE, ONES, np.ones((600, 3))), "number of dimensions differs"),
        (lambda: GivenPairs(EYE, EYE[:, :1], ONES, ONES), "covariance_u: shape .*expected .B, d, d."),
        (lambda: GivenPairs(EYE, EYE, ONES[0, 0], ONES), "objective_w: shape"),
        (lambda: GivenPairs(EYE[0], EYE[0], ONES[0], ONES[0]), "none has an axis of pairs; expected one of"),
        (lambda: GivenPairs("missing.npy", EYE, ONES, ONES), "missing.npy.*expected a .npy file"),
        (lambda: GivenPairs(EYE, EYE, [["a"]], ONES), "objective_w: dtype"),
        (lambda: GivenPairs(EYE, EYE, [[1, 2], [3]], ONES), "objective_w: .*expected an array of numbers"),
        (lambda: PairPopulation(EYE), "source: ndarray; expected DrawnPairs or GivenPairs"),  # type: ignore[arg-type]
        (lambda: drawn(step_w=2.0), r"step_w\[0\]: 2; expected less than 2, which is 2 / lambda_max"),
        (lambda: drawn(3, step_w=np.array([1, 2.5, 2.1])), r"step_w\[1\]: 2.5; expected less than 2"),
        (lambda: drawn(step_u=-0.1), "step_u: -0.1; expected a number above 0"),
        (lambda: drawn(step_u=[1.0, 1.0]), "step_u: shape .2,.; expected .700,."),
        (lambda: drawn(step_u=np.nan), "step_u: nan"),
        (lambda: drawn(inner_steps_w=0), "inner_steps_w: 0"),
        (lambda: drawn(order="random"), "order: 'random'; expected alternating or simultaneous"),
        (lambda: drawn(dtype="float16"), "dtype: 'float16'; expected float32 or float64"),
        (lambda: drawn(noise_w=-1.0), "noise_w: -1.0; expected a standard deviation of at least 0"),
        (lambda: drawn(noise_u=np.inf), "noise_u: inf"),
        (lambda: drawn(start=np.ones(3)), "start: shape .3,.; expected .4,. or .700, 4."),
        (lambda: simulate_pairs(drawn(start=np.array([1, np.nan, 0, 0])), 3), r"start\[1\]: nan; expected finite"),
        (lambda: drawn().part(3, 3), "last: 3"),
        (lambda: drawn().settings(700), "pair: 700"),
        (lambda: simulate_pairs(drawn(), 0), "rounds: 0; expected a whole number of at least 1"),
        (
            lambda: simulate_pairs(drawn(), 10, every=11),
            "every: 11; expected a whole number of at least 1 and at most 10",
        ),
        (lambda: simulate_pairs(drawn(), 10, after="v"), "after: 'v'; expected both, w or u"),  # type: ignore[arg-type]
        (lambda: simulate_pairs(drawn(), 10, device="tpu"), "device: 'tpu'; expected cpu"),
        (lambda: simulate_pairs(drawn(), 10, device="meta"), "device: 'meta'; expected cpu or cuda"),
        (
            lambda: simulate_pairs(drawn(), 10, device="cuda:99"),
            "device: 'cuda:99'; this machine has [0-9]+ CUDA devices",
        ),
        (lambda: simulate_pairs(drawn(), 10, reduce=lambda s: s.rounds), "reduce: returned Tensor"),  # type: ignore[arg-type,return-value]
        (
            lambda: simulate_pairs(drawn(), 10, reduce=lambda s: {"r": s.rounds}),
            r"returned r: \(1,\); expected",
        ),
        (lambda: simulate_pairs(drawn(), 10, after="w").residual_u, "after: U's states were not kept"),
        (lambda: simulate_pairs(drawn(), 10, after="u").residual_w, "after: W's states were not kept"),
    ],
)
def test_invalid_settings_are_reported(make: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the runs without checks
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"covariance_w": wrong(300, [[1, 0.5], [0, 1]])},
            r"covariance_w\[300\]: not symmetric: entries .* are 0.5 and 0;",
        ),
        ({"covariance_u": wrong(7, [[1, 0], [0, -0.25]])}, r"covariance_u\[7\]: smallest eigenvalue -0.25"),
        ({"covariance_u": wrong(599, np.nan)}, r"covariance_u\[599, 0, 0\]: nan; expected finite numbers"),
        ({"objective_u": np.where(np.arange(600)[:, None] == 256, np.inf, ONES)}, r"objective_u\[256, 0\]: inf"),
        (
            {"covariance_w": wrong(400, 8 * np.eye(2))},
            r"step_w\[400\]: 0.3; expected less than 0.25, which is 2",
        ),
        ({"covariance_u": wrong(2, 4 * np.eye(2))}, r"step_u\[2\]: 0.5; expected less than 0.5"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_invalid_given_pairs_are_reported_by_number(values: Any, words: str, dtype: Any) -> None:
    fields = {"covariance_w": EYE, "covariance_u": EYE, "objective_w": ONES, "objective_u": ONES, **values}
    population = PairPopulation(GivenPairs(**{k: v.astype(dtype) for k, v in fields.items()}), 0.3, 0.5)
    with pytest.raises(ConfigurationError, match=words):
        simulate_pairs(population, 3)
    simulate_pairs(population, 3, check=False)


def test_the_first_wrong_pair_is_named_and_limits_are_allowed() -> None:
    covariances = np.stack([np.diag([s, 0.0]) for s in (1.0, 3.0, 2.5)])
    pairs = GivenPairs(covariances, EYE[:3], ONES[:3], ONES[:3]).take(0, 3)
    steps = np.ones(3)
    with pytest.raises(ConfigurationError, match=r"step_w\[21\]: 1; expected less than 0\.666667"):
        check_pairs(pairs, (steps, steps), first=20)
    check_pairs(pairs, (steps * 0.6666, steps * 1.9999), first=20)  # singular, and just below the bound
    check_pairs(pairs._replace(covariance_w=0 * covariances), (steps, steps), first=0)  # W does not move


# --- a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_same_states() -> None:
    population = drawn(3 * BLOCK + 10)
    here = simulate_pairs(population, 60, every=3)
    there = simulate_pairs(population, 60, every=3, device="cuda")
    assert relative_difference(there.after_w.cpu(), here.after_w) <= 1e-12  # type: ignore[union-attr]
    assert relative_difference(there.after_u.cpu(), here.after_u) <= 1e-12  # type: ignore[union-attr]
    many = replace(noisy(100_000), dtype="float32")
    ends = [
        simulate_pairs(many, 30, reduce=residual_norms, device=d)["w"].square().mean().item() for d in ("cpu", "cuda")
    ]
    assert abs(ends[0] / ends[1] - 1) < 0.01
