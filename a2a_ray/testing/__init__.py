"""Contract tests for your own agents, protocols and observers; the built-in parts pass the same tests.

    from a2a_ray.testing import check_agent, check_observer, check_protocol

    def test_my_agent() -> None:
        check_agent(MyAgent("ann"))

Each raises AssertionError with one sentence: the broken promise, and what broke it. They need no test framework.
"""

from a2a_ray.testing.agent_contract import check_agent
from a2a_ray.testing.observer_contract import check_observer
from a2a_ray.testing.protocol_contract import check_protocol

__all__ = ["check_agent", "check_observer", "check_protocol"]
