"""Turns per second of one conversation in one process, beside LangGraph and AutoGen in the same run.

Two echo agents take turns; the whole transcript is kept; nothing is detected. Each peer does the same with its own
parts, in the quickest way that we found: LangGraph loops over two nodes whose state appends to a plain list (its
`MessagesState` takes half as long again), AutoGen's RoundRobinGroupChat passes the turn between two agents. Sides
alternate, and the median of the repetitions counts. The peers live in `.venv-bench` (`make bench-setup`); where they
are not installed their ratios are null.

    .venv-bench/bin/python benchmarks/turns.py [--repetitions 5]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import operator
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated, TypedDict

from a2a_ray.agents.echo import EchoAgent
from a2a_ray.core.conversation import Conversation

OPENING = "The old bridge was closed for repairs, so the traders took the longer road."
TURNS = {"a2a_ray": 20_000, "langgraph": 500, "autogen": 500}
"""Turns of one repetition. LangGraph copies its list at every step, so that a longer talk would cost it more a turn."""


def ours(turns: int) -> float:
    """Seconds for so many turns."""
    conversation = Conversation([EchoAgent("ann"), EchoAgent("bob")], opening=OPENING, max_turns=turns)
    started = time.perf_counter()
    transcript = conversation.run()
    seconds = time.perf_counter() - started
    _same("a2a_ray", len(transcript.messages), turns)
    return seconds


class State(TypedDict):
    """LangGraph's state."""

    messages: Annotated[list[dict[str, str]], operator.add]


def langgraph(turns: int) -> float:
    """Seconds for so many turns (an even number) of a loop over two nodes that append to the list in the state."""
    from langgraph.graph import END, START, StateGraph

    def node(name: str) -> Callable[[State], dict[str, list[dict[str, str]]]]:
        return lambda state: {"messages": [{"name": name, "content": state["messages"][-1]["content"]}]}

    graph = StateGraph(State)
    graph.add_node("ann", node("ann"))
    graph.add_node("bob", node("bob"))
    graph.add_edge(START, "ann")
    graph.add_edge("ann", "bob")
    graph.add_conditional_edges("bob", lambda state: "ann" if len(state["messages"]) <= turns else END)
    app = graph.compile()
    started = time.perf_counter()
    state = app.invoke({"messages": [{"name": "", "content": OPENING}]}, {"recursion_limit": turns + 10})
    seconds = time.perf_counter() - started
    _same("langgraph", len(state["messages"]) - 1, turns)
    return seconds


def autogen(turns: int) -> float:
    """Seconds for so many turns of a RoundRobinGroupChat, which keeps the message thread itself."""
    import logging

    from autogen_agentchat.agents import BaseChatAgent
    from autogen_agentchat.base import Response
    from autogen_agentchat.messages import BaseChatMessage, TextMessage
    from autogen_agentchat.teams import RoundRobinGroupChat
    from autogen_core import CancellationToken

    logging.getLogger("autogen_core").setLevel(logging.ERROR)

    class Echo(BaseChatAgent):
        produced_message_types = (TextMessage,)

        async def on_messages(self, messages: list[BaseChatMessage], _: CancellationToken) -> Response:
            return Response(chat_message=TextMessage(content=messages[-1].content, source=self.name))

        async def on_reset(self, _: CancellationToken) -> None:
            pass

    async def hold() -> float:
        team = RoundRobinGroupChat([Echo("ann", "echo"), Echo("bob", "echo")], max_turns=turns)
        started = time.perf_counter()
        result = await team.run(task=OPENING)
        seconds = time.perf_counter() - started
        _same("autogen", len(result.messages) - 1, turns)
        return seconds

    return asyncio.run(hold())


def _same(side: str, said: int, turns: int) -> None:
    if said != turns:
        raise SystemExit(f"{side}: {said} messages in the transcript; expected {turns}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    sides = {"a2a_ray": ours}
    for side, package, measure in (("langgraph", "langgraph", langgraph), ("autogen", "autogen_agentchat", autogen)):
        if importlib.util.find_spec(package) is None:
            print(f"{side} is not installed here, so it is left out: make bench-setup", file=sys.stderr)
        else:
            sides[side] = measure
    for measure in sides.values():
        measure(50)  # imports, and code that compiles itself
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.repetitions):
        for side, measure in sides.items():
            seconds[side].append(measure(TURNS[side]))
    rate = {side: TURNS[side] / statistics.median(taken) for side, taken in seconds.items()}
    for side, value in rate.items():
        print(f"{side}: {value:,.0f} turns/s", file=sys.stderr)
    result: dict[str, float | None] = {"turns_per_s": round(rate["a2a_ray"])}
    for side in ("langgraph", "autogen"):
        result[f"x_{side}"] = round(rate["a2a_ray"] / rate[side], 1) if side in rate else None
    print(json.dumps(result))


if __name__ == "__main__":
    main()
