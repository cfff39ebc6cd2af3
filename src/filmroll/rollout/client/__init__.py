"""Asking engines: one client for an embedded engine, a vLLM with the plugin, and a stock vLLM; for one server or many.

A request is written (`requests.py`), sent to the server that has its conversation (`fleet.py`,
`server.py`), again if it must be (`tries.py`), and its answer is believed only as far as it agrees
with what was sent (`answers.py`).
"""

from filmroll.rollout.client.answers import Completion
from filmroll.rollout.client.engines import EngineClient
from filmroll.rollout.client.requests import generate_request

__all__ = ["Completion", "EngineClient", "generate_request"]
