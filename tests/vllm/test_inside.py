"""What filmroll relies on inside vLLM is there, by name and signature; what has changed is said."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from filmroll.engine.vllm import inside
from tests.vllm.serving import ENVIRONMENT, PYTHON

NAMES = {
    "vllm.entrypoints.scale_out.token_in_token_out.serving:ServingTokens.__init__": ["online_renderer"],
    "vllm.entrypoints.scale_out.token_in_token_out.serving:ServingTokens.serve_tokens": ["request", "raw_request"],
    "vllm.entrypoints.serve.exception_handling.register:validation_exception_handler": ["req", "exc"],
    "vllm.renderers.online_renderer:OnlineRenderer.preprocess_completion": ["request", "prompt_input", "skip_mm_cache"],
    "vllm.renderers.base:BaseRenderer.get_mm_processor": [],
    "vllm.renderers.base:BaseRenderer.mm_processor_cache": None,
    "vllm.renderers.base:BaseRenderer.update_mm_cache_stats": [],
    "vllm.multimodal.processing:BaseMultiModalProcessor._get_mm_fields_config": ["hf_inputs", "hf_processor_mm_kwargs"],
    "vllm.multimodal.cache:BaseMultiModalProcessorCache.is_cached_item": ["mm_hash"],
    "vllm.multimodal.cache:BaseMultiModalProcessorCache.get_and_update_item": ["mm_item", "mm_hash"],
    "vllm.multimodal.cache:BaseMultiModalProcessorCache.touch_sender_cache_item": ["mm_hash"],
    "vllm.multimodal.cache:BaseMultiModalProcessorCache.invalidate": ["mm_hash"],
    "vllm.multimodal.processing:BaseMultiModalProcessor.get_dummy_inputs": ["seq_len", "mm_counts", "mm_options"],
    "vllm.multimodal.processing:BaseMultiModalProcessor.apply": ["inputs", "timing_ctx"],
    "vllm.multimodal.processing:TimingContext": ["enabled"],
    "vllm.config.multimodal:ImageDummyOptions": ["count", "width", "height"],
    "vllm.multimodal.inputs:PlaceholderRange.get_num_embeds": [],
    "vllm.multimodal.inputs:MultiModalKwargsItem.get_data": [],
    "vllm.multimodal.inputs:MultiModalKwargsItems.from_hf_inputs": ["hf_inputs", "config_by_key"],
    "vllm.multimodal.inputs:PlaceholderRange": ["offset", "length", "is_embed"],
    "vllm.inputs:mm_input": ["prompt_token_ids", "mm_kwargs", "mm_hashes", "mm_placeholders", "cache_salt"],
    "vllm.config.multimodal:MultiModalConfig.get_limit_per_prompt": ["modality"],
    "vllm.config:VllmConfig": ["model_config", "additional_config"],
    "vllm.multimodal.inputs:MultiModalSharedField": None,
    "vllm.multimodal.media:MEDIA_CONNECTOR_REGISTRY.register": ["name"],
    "vllm.multimodal.media:MediaConnector.fetch_image": ["image_url"],
    "vllm.multimodal.media:MediaConnector.fetch_image_async": ["image_url"],
    "vllm.multimodal.media:MediaWithBytes": ["media", "original_bytes"],
    "vllm.entrypoints.scale_out.token_in_token_out.protocol:GenerateRequest.model_copy": ["update"],
    "vllm:__version__": None,
    "vllm.envs:VLLM_MEDIA_CONNECTOR": None,
    "vllm.exceptions:GracefulHTTPError": ["message", "http_status"],
    "vllm.exceptions:GenerationError": None,
    "vllm.plugins:load_general_plugins": [],
    "vllm.entrypoints.scale_out.token_in_token_out.api_router:router.add_api_route": ["path", "endpoint", "methods"],
    "vllm.config.parallel:ParallelConfig._api_process_count": None,
    "vllm.config.weight_transfer:WeightTransferConfig": ["backend"],
    "vllm.v1.engine.async_llm:AsyncLLM.pause_generation": ["mode", "clear_cache"],
    "vllm.v1.engine.async_llm:AsyncLLM.resume_generation": [],
    "vllm.v1.engine.async_llm:AsyncLLM.reset_prefix_cache": ["reset_connector"],
    "vllm.v1.engine.async_llm:AsyncLLM.reset_encoder_cache": [],
    "vllm.v1.engine.async_llm:AsyncLLM.start_weight_update": [],
    "vllm.v1.engine.async_llm:AsyncLLM.update_weights": ["request"],
    "vllm.v1.engine.async_llm:AsyncLLM.finish_weight_update": ["weight_version"],
    "vllm.v1.engine.async_llm:AsyncLLM.update_weight_version": ["new_version"],
    "vllm.v1.engine.async_llm:AsyncLLM.get_weight_version": [],
    "vllm.distributed.parallel_state:get_world_group": [],
    "vllm.distributed.weight_transfer.factory:WeightTransferEngineFactory.register_engine": [
        "name",
        "module_path_or_cls",
        "class_name",
    ],
    "vllm.distributed.weight_transfer.factory:WeightTransferEngineFactory._registry": None,
    "vllm.distributed.weight_transfer.base:WeightTransferEngine": ["config", "vllm_config", "device", "model"],
    "vllm.distributed.weight_transfer.base:WeightTransferInitInfo": None,
    "vllm.distributed.weight_transfer.base:WeightTransferUpdateInfo": None,
    "vllm.distributed.weight_transfer.base:WeightTransferUpdateRequest": ["update_info"],
    "vllm.model_executor.model_loader.reload:initialize_layerwise_reload": ["model"],
    "vllm.model_executor.model_loader.reload:finalize_layerwise_reload": [],
    "vllm.model_executor.model_loader:get_model_loader": ["load_config"],
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.get_all_weights": ["model_config", "model"],
    "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.process_weights_after_loading": [
        "layer"
    ],
}
"""What is relied on, and the parameters that are passed or read; None for what is no function."""

SOURCES = {
    "vllm.v1.executor.multiproc_executor:MultiprocExecutor.collective_rpc": "for mq in response_mqs:",
    "vllm.distributed.parallel_state:GroupCoordinator.__init__": "self.rank_in_group = ",
    "vllm.entrypoints.serve.exception_handling.register:init_exception_handler": (
        "app.exception_handler(RequestValidationError)(validation_exception_handler)"
    ),
    "vllm.v1.engine.core:EngineCore.__init__": "self._weight_version =",
    "vllm.v1.worker.gpu_worker:Worker.load_model": "WeightTransferEngineFactory.create_engine(",
    "vllm.v1.worker.gpu_worker:Worker.update_weights": "self.weight_transfer_engine.update_weights(",
    "vllm.distributed.weight_transfer.base:WeightTransferEngine.update_weights": "self.receive_weights(",
    "vllm.renderers.base:BaseRenderer.__init__": "self._mm_executor = ThreadPoolExecutor(max_workers=1)",
    "vllm.entrypoints.scale_out.token_in_token_out.serving:ServingTokens.serve_tokens": (
        "(engine_input,) = await self.online_renderer.preprocess_completion("
    ),
    "vllm.entrypoints.scale_out.token_in_token_out.serving:ServingTokens": "mm_parser.parse_image(url, uuid)",
    "vllm.renderers.chat_utils|vllm.entrypoints.chat_utils:AsyncMultiModalContentParser._connector": (
        "envs.VLLM_MEDIA_CONNECTOR"
    ),
    "vllm.renderers.chat_utils|vllm.entrypoints.chat_utils:AsyncMultiModalContentParser._image_with_uuid_async": (
        "await self._connector.fetch_image_async(image_url)"
    ),
    "vllm.model_executor.models.idefics3:Idefics3MultiModalProcessor": 'processed_data["num_patches"]',
    "vllm.model_executor.models.gemma3_mm:Gemma3MultiModalProcessor": 'processed_data["num_patches"]',
    "vllm.model_executor.models.interns1:InternS1MultiModalProcessor": '"image_num_patches": ',
}
"""What no signature says; a module that has moved is named where it is, and where it was in 0.31."""

INSPECT = """
import inspect, json, sys
from importlib import import_module

names, sources = json.load(sys.stdin)
changed = []

def imported(modules):
    first, *others = modules
    try:
        return import_module(first)
    except ImportError:
        if not others:
            raise
        return imported(others)

def found(name):
    modules, _, path = name.partition(":")
    thing = imported(modules.split("|"))
    for part in path.split("."):
        thing = inspect.getattr_static(thing, part) if part.startswith("_") else getattr(thing, part)
    return thing

for name, wanted in names.items():
    try:
        thing = found(name)
        missing = set(wanted or ()) - set(inspect.signature(thing).parameters) if wanted is not None else ()
    except (ImportError, AttributeError) as error:
        changed.append(f"{name}: {error}")
        continue
    if missing:
        changed.append(f"{name} has no {', '.join(sorted(missing))}: {inspect.signature(thing)}")
for name, text in sources.items():
    try:
        source = inspect.getsource(getattr(found(name), "func", found(name)))
    except (ImportError, AttributeError) as error:
        changed.append(f"{name}: {error}")
        continue
    if text not in source:
        changed.append(f"{name} has no longer: {text}")
print(json.dumps(changed))
"""


def imported() -> Iterator[str]:
    """All names that filmroll imports from vLLM; lint knows that nothing outside this room does."""
    for file in Path(inside.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vllm":
                yield from (f"{node.module}.{name.name}" for name in node.names)


def test_whatever_is_imported_is_among_what_is_looked_at() -> None:
    looked_at = {f"{name.replace(':', '.')}." for name in NAMES}
    assert not [name for name in imported() if not any(one.startswith(f"{name}.") for one in looked_at)]


@pytest.mark.vllm
def test_what_is_relied_on_is_there() -> None:
    done = subprocess.run(
        [PYTHON, "-c", INSPECT],
        input=json.dumps([NAMES, SOURCES]),
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    changed = json.loads(done.stdout.splitlines()[-1])
    assert not changed, "filmroll/engine/vllm/inside has to follow vLLM:\n" + "\n".join(changed)
