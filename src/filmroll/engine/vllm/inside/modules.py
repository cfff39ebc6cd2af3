"""Modules of vLLM that are looked at right after they are imported; what is changed in them, `plugin.py` says."""

from __future__ import annotations

SERVING = "vllm.entrypoints.scale_out.token_in_token_out.serving"
ROUTER = "vllm.entrypoints.scale_out.token_in_token_out.api_router"
VALIDATION = "vllm.entrypoints.serve.exception_handling.register"
TRANSFERS = "vllm.distributed.weight_transfer.factory"
