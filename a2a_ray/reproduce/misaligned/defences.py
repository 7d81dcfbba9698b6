"""What three defences of W do to an adversary, and what each costs W and an honest partner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from a2a_ray.reproduce.misaligned.attackers import projecting, white_box
from a2a_ray.reproduce.misaligned.defences_section import (
    BOUNDED,
    FORGOTTEN,
    INFORMED,
    NONE,
    PROBING,
    REDRAWN,
    Curves,
    defences_section,
    outcome,
)
from a2a_ray.reproduce.misaligned.defended_agent import (
    Bounded,
    Guard,
    Probing,
    Redrawn,
    guarded_talk,
    probe_settled,
)
from a2a_ray.reproduce.misaligned.experiment_result import ExperimentResult
from a2a_ray.reproduce.misaligned.lsa_pairs import (
    Side,
    apply,
    gaps,
    norms,
    population,
    predicted,
    root_mean_square,
    settle,
    sides,
)
from a2a_ray.reproduce.misaligned.study_settings import Settings

PAIRS = 100
LEFT = 1e-10
ROOM = 1.2
"""The bound on U's step is the step of the honest partner at rest, with a fifth to spare."""
BOUNDS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25)


def run(settings: Settings) -> ExperimentResult:
    """The experiment."""
    w, honest = sides(population(settings, pairs=min(PAIRS, settings.pairs)))
    scene = _Scene(w, honest, settings)
    curves = {
        "attack": {name: scene.talk(guard, scene.attack) for name, guard in scene.guards.items()},
        "honest": {name: scene.talk(guard, honest) for name, guard in scene.guards.items()},
    }
    along_gap = projecting([gap[None] for gap in honest.objectives - w.objectives], honest.objectives, w.step_size)
    informed = scene.talk(scene.guards[REDRAWN], along_gap)
    values = {
        "pairs": len(w),
        "rounds": scene.rounds,
        "attacked": {name: _level(c) for name, c in curves["attack"].items()} | {INFORMED: _level(informed)},
        "attacked_predicted": scene.predicted_attack(),
        "honest": {
            name: _level(c) | {"rounds_to_settle": scene.rounds_to_settle(scene.guards[name])}
            for name, c in curves["honest"].items()
        },
        "honest_predicted": scene.predicted_honest(),
        "bounds": [scene.under(share) for share in BOUNDS],
        "probe": scene.probe(settings),
        "redrawn_mean": {"attack": scene.mean_when_redrawn(scene.attack), "honest": scene.mean_when_redrawn(honest)},
    }
    return ExperimentResult(defences_section(curves, values), outcome(values), values)


class _Scene:
    """The pairs, the attack and the guards."""

    def __init__(self, w: Side, honest: Side, settings: Settings) -> None:
        self.w, self.honest, self.gap = w, honest, gaps(w, honest)
        self.attack = white_box(w, honest.objectives)
        self.settled, attacked = predicted(w, honest), predicted(w, self.attack)
        self.rounds = settings.rounds_for(max(self.settled.radius, attacked.radius), LEFT)
        self.needed = norms(apply(w.pulls, honest.objectives - w.objectives))  # U's step that undoes W's pull at u*
        self.bound = ROOM * norms(apply(w.pulls, self.settled.residual_u + honest.objectives - w.objectives))
        eigenvalues = np.linalg.eigvalsh(w.covariances[0])
        self.guards: dict[str, Callable[[], Guard]] = {
            NONE: lambda: Guard(w),
            REDRAWN: lambda: Redrawn(w, eigenvalues, settings.seed),
            BOUNDED: lambda: Bounded(w, self.bound),
            PROBING: lambda: Probing(w),
        }

    def talk(self, guard: Callable[[], Guard], u: Side) -> Curves:
        """Errors of W and U per round, root mean square over pairs, shares of the gap; shape (2, rounds)."""
        said, accepted = guarded_talk(guard(), u.turn, self.rounds)
        errors = np.stack([norms(said - self.w.objectives), norms(accepted - u.objectives)]) / self.gap
        return root_mean_square(errors)

    def predicted_attack(self) -> dict[str, dict[str, float]]:
        """Undefended: e_U = 0, e_W = M_W D. Under a bound b: U gets the share b / |eta_W S_W D| of the way, so that
        e_U = -(1 - share) D and e_W = share M_W D. Found out by a probe: W is alone, at its objective.
        """
        missed = norms(apply(self.w.contractions, self.honest.objectives - self.w.objectives)) / self.gap
        share = np.minimum(self.bound / self.needed, 1)
        return {
            NONE: {"U": 0.0, "W": float(root_mean_square(missed))},
            BOUNDED: {"U": float(root_mean_square(1 - share)), "W": float(root_mean_square(share * missed))},
            PROBING: {"U": 1.0, "W": 0.0},
        }

    def predicted_honest(self) -> dict[str, float]:
        """At rest without a defence, and with the bound, which leaves the honest partner's step at rest alone."""
        return {
            "W": float(root_mean_square(norms(self.settled.residual_w) / self.gap)),
            "U": float(root_mean_square(norms(self.settled.residual_u) / self.gap)),
        }

    def under(self, share: float) -> dict[str, float]:
        """Attack and honest partner where the bound is this share of the step that the attack needs."""

        def guard() -> Guard:
            return Bounded(self.w, share * self.needed)

        attacked, honest = _level(self.talk(guard, self.attack)), _level(self.talk(guard, self.honest))
        return {
            "bound": share,
            "adversary_error": attacked["U"],
            "adversary_error_predicted": max(1 - share, 0.0),
            "victim_error": attacked["W"],
            "honest_w": honest["W"],
            "honest_u": honest["U"],
        }

    def rounds_to_settle(self, guard: Callable[[], Guard]) -> int | None:
        """With the honest partner; None where the rounds do not suffice. Both talks have the same draws."""
        b, d = self.honest.objectives.shape
        away = np.random.default_rng(b).normal(size=(b, d))
        other = away * (self.gap / norms(away))[:, None]
        states = [guarded_talk(guard(), self.honest.turn, self.rounds, start)[1] for start in (None, other)]
        apart = root_mean_square(norms(states[1] - states[0]) / self.gap)
        far = np.flatnonzero(apart > FORGOTTEN)
        found = int(far[-1]) + 2 if len(far) else 1
        return found if found <= self.rounds else None

    def mean_when_redrawn(self, u: Side) -> dict[str, float]:
        """W's mean error along the predicted one: in the mean W has an isotropic geometry, since S is drawn apart from
        the state, and E[S] = (tr S / d) I.
        """
        said, _ = guarded_talk(self.guards[REDRAWN](), u.turn, self.rounds)
        mean = said[len(said) // 2 :].mean(axis=0) - self.w.objectives
        d = mean.shape[1]
        isotropic = np.trace(self.w.covariances[0]) / d * np.eye(d)
        expected = predicted(replace(self.w, covariances=np.tile(isotropic, (len(u), 1, 1))), u).residual_w
        size = norms(expected)
        along = (mean * expected).sum(axis=1) / np.maximum(size, np.finfo(float).tiny)
        return {"measured": float((along / self.gap).mean()), "predicted": float((size / self.gap).mean())}

    def probe(self, settings: Settings) -> dict[str, float]:
        """How far U's reply to a probe moves at rest: the least of the honest, the most of the attackers."""
        moved = {}
        for name, u in (("honest", self.honest), ("attack", self.attack)):
            rounds = settings.rounds_for(predicted(self.w, u).radius)
            states = settle(self.w.turn, u.turn, np.zeros_like(u.objectives), rounds)
            moved[name] = probe_settled(self.w, u.turn, *states)
        watched = {}
        for name, u in (("honest", self.honest), ("attack", self.attack)):
            guard = Probing(self.w)
            guarded_talk(guard, u.turn, self.rounds)
            watched[name] = float(guard.alone.mean())
        return {
            "honest_least": float(moved["honest"].min()),
            "attack_most": float(moved["attack"].max()),
            "honest_alarms": watched["honest"],
            "attack_alarms": watched["attack"],
        }


def _level(curves: Curves) -> dict[str, float]:
    """Root mean square over the last quarter of the rounds."""
    last = curves[:, -max(1, curves.shape[1] // 4) :]
    return {name: float(x) for name, x in zip("WU", root_mean_square(last), strict=True)}
