"""One API server of vLLM: how it was started, and how it answers."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from filmroll.engine.vllm.inside.cache import Cache
from filmroll.engine.vllm.inside.configuration import model_name, told
from filmroll.engine.vllm.inside.items import Items
from filmroll.engine.vllm.inside.prompts import Prepared


class Server:
    """One API server of vLLM."""

    def __init__(self, serving: Any, serve_tokens: Callable[..., Any]) -> None:
        self._serving = serving
        self._serve_tokens = serve_tokens
        self._config = serving.engine_client.vllm_config
        renderer = serving.online_renderer.renderer
        self.items = Items(renderer, self._config.model_config)
        self.cache = Cache(renderer)

    @property
    def engine(self) -> Any:
        """The client through which this server speaks to its engine."""
        return self._serving.engine_client

    @property
    def version(self) -> str:
        """vLLM's own."""
        from vllm import __version__

        return str(__version__)

    @property
    def name(self) -> str:
        """What requests call the model."""
        return str(self._config.model_config.served_model_name)

    @property
    def model(self) -> str:
        return model_name(self._config)

    @property
    def settings(self) -> Any:
        return told(self._config)

    @property
    def weight_transfer(self) -> str | None:
        """The backend that was chosen for new weights."""
        chosen = self._config.weight_transfer_config
        return None if chosen is None else str(chosen.backend)

    @property
    def quantization(self) -> str | None:
        """How its weights are made smaller."""
        chosen = self._config.model_config.quantization
        return None if chosen is None else str(chosen)

    @property
    def tied(self) -> bool:
        """Whether its head is the embeddings' tensor: what the configuration says, unless the checkpoint has both."""
        return bool(getattr(self._config.model_config.hf_config, "tie_word_embeddings", False))

    @property
    def api_servers(self) -> int:
        """How many processes take requests for one engine."""
        return int(self._config.parallel_config._api_process_count)

    @property
    def max_model_len(self) -> int:
        return int(self._config.model_config.max_model_len)

    @property
    def normalizes(self) -> bool:
        """Whether the model normalizes pixels on its device, and wants their levels."""
        return bool(getattr(self._config.model_config.get_multimodal_config(), "mm_device_do_normalize", False))

    def images_allowed(self, modality: str) -> int:
        """How many images a prompt may have."""
        return int(self._config.model_config.get_multimodal_config().get_limit_per_prompt(modality))

    async def answer(self, request: Any, raw_request: Any) -> Any:
        """vLLM's own answer to a request of its own kind."""
        return await self._serve_tokens(self._serving, request, raw_request)

    async def serve(self, request: Any, raw_request: Any, engine_input: Any) -> Any:
        """vLLM's own answer to the request, whose prompt is prepared already."""
        serving = copy(self._serving)
        serving.online_renderer = Prepared(engine_input)
        return await self._serve_tokens(serving, request.model_copy(update={"features": None}), raw_request)
