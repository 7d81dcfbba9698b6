"""Contract tests for agents, protocols and detectors of your own; the built-in parts pass the same.

    from a2a_ray.testing import check_agent, check_observer, check_protocol

    def test_my_agent() -> None:
        check_agent(MyAgent("ann"))

Each raises AssertionError with one sentence: which promise was broken, and by what. They need nothing else.
"""

from a2a_ray.testing.agent_contract import check_agent
from a2a_ray.testing.observer_contract import check_observer
from a2a_ray.testing.protocol_contract import check_protocol

__all__ = ["check_agent", "check_observer", "check_protocol"]
