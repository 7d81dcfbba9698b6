"""The actor that keeps a run's budget, and the limits that an experiment gives it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from a2a_ray.experiment.spec import Experiment
from a2a_ray.runtime.limits.budget import UNLIMITED, Budget, BudgetLimits, BudgetReply
from a2a_ray.runtime.limits.rate_limit import EndpointReport, RateLimits
from a2a_ray.runtime.limits.spent import Spent, usage_number

if TYPE_CHECKING:
    from a2a_ray.store.run import Run


class BudgetKeeper:
    """Actor around a `Budget`. in_actor: False for a keeper in the process of the run."""

    def __init__(
        self, limits: Mapping[str, RateLimits], totals: BudgetLimits, spent: Spent, in_actor: bool = True
    ) -> None:
        self._budget = Budget(limits, totals, spent, fresh=not (in_actor and _restarted()))

    async def exchange(self, worker: str, spent: Spent, reports: Mapping[str, EndpointReport]) -> BudgetReply:
        """See `Budget.exchange`."""
        return self._budget.exchange(worker, spent, reports)

    async def stop_reason(self) -> str:
        """Return which total is spent, for people; empty while none is."""
        return self._budget.stop_reason()


def endpoint_limits(experiment: Experiment) -> tuple[dict[str, RateLimits], dict[str, str]]:
    """Return the rate limits of each endpoint whose calls are counted, and the endpoint of each agent's key.

    If several agents give limits for one endpoint, the lowest apply. Without totals these are the endpoints that have
    limits; with totals also those of all paid and all heavy agents. Judges are agents too.
    """
    total = experiment.budget is not None and experiment.budget.model_dump(exclude={"seconds"}, exclude_none=True)
    found: dict[str, RateLimits] = {}
    by_key: dict[str, str] = {}
    for spec in (spec for cell in experiment.cells for _, spec in cell.all_agents):
        endpoint = by_key[spec.key()] = spec.endpoint_key
        limits = RateLimits(spec.limits.requests_per_minute, spec.limits.tokens_per_minute, spec.limits.max_concurrency)
        if any(limits) or (total and (spec.paid or spec.heavy)):
            found[endpoint] = limits.lower(found.get(endpoint, RateLimits()))
    return found, {key: endpoint for key, endpoint in by_key.items() if endpoint in found}


def _restarted() -> bool:
    """Return whether Ray has restarted the actor of this process."""
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def budget_totals(experiment: Experiment) -> BudgetLimits:
    """Return the most that the run may take, without the limit on its time."""
    budget = experiment.budget
    return UNLIMITED if budget is None else BudgetLimits(budget.cost, budget.tokens, budget.requests)


def start_budget_keeper(experiment: Experiment, spent: Spent) -> tuple[Any, dict[str, str]]:
    """Start the actor that keeps the budget; return it, and the endpoint of each limited agent's key.

    The actor is None if nothing is limited. spent: before this start of the run.
    """
    import ray

    limits, by_key = endpoint_limits(experiment)
    if not limits:
        return None, {}
    actor: Any = ray.remote
    # Ray restarts it if it dies; the workers then report what they have spent.
    kind = actor(BudgetKeeper).options(num_cpus=0, max_restarts=-1, max_task_retries=0)
    return kind.remote(limits, budget_totals(experiment), spent), by_key


def spent_before(run: Run) -> Spent:
    """Return what a run took before this start, as far as it is stored."""
    total = run.cost()
    tokens = int(usage_number(total, "input_tokens") + usage_number(total, "output_tokens"))
    requests = max(int(usage_number(total, "requests")), run.ledger()["calls"])
    return Spent(float(usage_number(total, "cost")), tokens, requests)
