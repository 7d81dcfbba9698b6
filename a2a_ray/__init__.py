"""Run conversations between AI agents on Ray, store every turn, and detect biased equilibria and repetitive loops.

`__all__` lists the public names. Each is imported on first use, so that `import a2a_ray` is fast and loads neither Ray
nor torch nor NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    __version__: str
    from a2a_ray.agents.echo import EchoAgent as EchoAgent
    from a2a_ray.agents.function import FunctionAgent as FunctionAgent
    from a2a_ray.agents.hf.hf_agent import HFAgent as HFAgent
    from a2a_ray.agents.lsa.lsa_agent import LSAAgent as LSAAgent
    from a2a_ray.agents.lsa.regression import RegressionAgent as RegressionAgent
    from a2a_ray.agents.openai.openai_agent import OpenAIAgent as OpenAIAgent
    from a2a_ray.agents.replay import ReplayAgent as ReplayAgent
    from a2a_ray.analysis.analyze import AnalysisSettings as AnalysisSettings
    from a2a_ray.analysis.analyze import analyze as analyze
    from a2a_ray.analysis.dynamics.pair_population import PairPopulation as PairPopulation
    from a2a_ray.analysis.dynamics.pair_simulation import simulate_pairs as simulate_pairs
    from a2a_ray.analysis.equilibria.assessment import assess_equilibrium as assess_equilibrium
    from a2a_ray.analysis.judge import JudgedObserver as JudgedObserver
    from a2a_ray.analysis.loops import LoopDetector as LoopDetector
    from a2a_ray.analysis.text.embedding import load_embedder as load_embedder
    from a2a_ray.analysis.text.exact_repetition import ExactRepetitionRule as ExactRepetitionRule
    from a2a_ray.analysis.text.paper_rule import PaperLoopRule as PaperLoopRule
    from a2a_ray.core.base_agent import BaseAgent as BaseAgent
    from a2a_ray.core.contracts import Agent as Agent
    from a2a_ray.core.contracts import Observer as Observer
    from a2a_ray.core.contracts import TurnProtocol as TurnProtocol
    from a2a_ray.core.conversation import Conversation as Conversation
    from a2a_ray.core.errors import A2AError as A2AError
    from a2a_ray.core.errors import AgentError as AgentError
    from a2a_ray.core.errors import ConfigurationError as ConfigurationError
    from a2a_ray.core.errors import ContextLengthError as ContextLengthError
    from a2a_ray.core.errors import InvalidResponseError as InvalidResponseError
    from a2a_ray.core.errors import MissingDependencyError as MissingDependencyError
    from a2a_ray.core.errors import PlacementError as PlacementError
    from a2a_ray.core.errors import StorageError as StorageError
    from a2a_ray.core.findings import Finding as Finding
    from a2a_ray.core.message import Message as Message
    from a2a_ray.core.termination import Converged as Converged
    from a2a_ray.core.termination import MaxTokens as MaxTokens
    from a2a_ray.core.termination import MaxTurns as MaxTurns
    from a2a_ray.core.termination import TerminationCondition as TerminationCondition
    from a2a_ray.core.termination import TextMention as TextMention
    from a2a_ray.core.transcript import Transcript as Transcript
    from a2a_ray.core.turns import BidRequest as BidRequest
    from a2a_ray.core.turns import ProtocolMessage as ProtocolMessage
    from a2a_ray.core.turns import Stop as Stop
    from a2a_ray.core.turns import TurnContext as TurnContext
    from a2a_ray.core.verdict import ObserverVerdict as ObserverVerdict
    from a2a_ray.experiment.spec import Experiment as Experiment
    from a2a_ray.protocols.adaptive import Adaptive as Adaptive
    from a2a_ray.protocols.alternating import Alternating as Alternating
    from a2a_ray.protocols.newton_helper import NewtonHelper as NewtonHelper
    from a2a_ray.protocols.simultaneous import Simultaneous as Simultaneous
    from a2a_ray.runtime.agents.pool import remote as remote
    from a2a_ray.runtime.analyze_run import analyze_run as analyze_run
    from a2a_ray.runtime.pair_shards import run_pair_population as run_pair_population
    from a2a_ray.runtime.run_experiment import resume_run as resume_run
    from a2a_ray.runtime.run_experiment import run_experiment as run_experiment
    from a2a_ray.store.run import Run as Run
    from a2a_ray.store.run import open_run as open_run
    from a2a_ray.transcripts.jsonl import read_jsonl as read_jsonl
    from a2a_ray.transcripts.jsonl import write_jsonl as write_jsonl

_NAMES_OF_MODULE = {
    "agents.echo": "EchoAgent",
    "agents.function": "FunctionAgent",
    "agents.hf.hf_agent": "HFAgent",
    "agents.lsa.lsa_agent": "LSAAgent",
    "agents.openai.openai_agent": "OpenAIAgent",
    "agents.lsa.regression": "RegressionAgent",
    "agents.replay": "ReplayAgent",
    "analysis.analyze": "AnalysisSettings analyze",
    "analysis.text.embedding": "load_embedder",
    "analysis.judge": "JudgedObserver",
    "analysis.loops": "LoopDetector",
    "analysis.dynamics.pair_population": "PairPopulation",
    "analysis.dynamics.pair_simulation": "simulate_pairs",
    "analysis.text.paper_rule": "PaperLoopRule",
    "analysis.text.exact_repetition": "ExactRepetitionRule",
    "analysis.equilibria.assessment": "assess_equilibrium",
    "core.base_agent": "BaseAgent",
    "core.contracts": "Agent Observer TurnProtocol",
    "core.turns": "BidRequest ProtocolMessage Stop TurnContext",
    "core.verdict": "ObserverVerdict",
    "core.conversation": "Conversation",
    "core.errors": "A2AError AgentError InvalidResponseError ConfigurationError"
    " ContextLengthError MissingDependencyError PlacementError StorageError",
    "transcripts.jsonl": "read_jsonl write_jsonl",
    "core.findings": "Finding",
    "core.message": "Message",
    "core.termination": "MaxTokens MaxTurns TextMention Converged TerminationCondition",
    "core.transcript": "Transcript",
    "protocols.adaptive": "Adaptive",
    "protocols.alternating": "Alternating",
    "protocols.newton_helper": "NewtonHelper",
    "protocols.simultaneous": "Simultaneous",
    "experiment.spec": "Experiment",
    "runtime.agents.pool": "remote",
    "runtime.pair_shards": "run_pair_population",
    "runtime.run_experiment": "resume_run run_experiment",
    "runtime.analyze_run": "analyze_run",
    "store.run": "Run open_run",
}
_MODULE_OF_NAME = {name: module for module, names in _NAMES_OF_MODULE.items() for name in names.split()}

__all__ = sorted(_MODULE_OF_NAME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("a2a-ray")
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'a2a_ray' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"a2a_ray.{_MODULE_OF_NAME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
