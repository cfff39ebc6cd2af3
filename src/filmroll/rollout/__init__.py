"""Playing episodes: environments, the client of an engine, the trajectory graph, the worker that ties them.

The writers' wing: what leaves here are tokens and descriptors.
"""

from filmroll.rollout.client import Completion, EngineClient
from filmroll.rollout.environment import Environment, Episode, Retry, Rewrite, Score
from filmroll.rollout.trajectory import Node, Trajectory

__all__ = ["Completion", "EngineClient", "Environment", "Episode", "Node", "Retry", "Rewrite", "Score", "Trajectory"]
