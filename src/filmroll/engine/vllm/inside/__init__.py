"""All that filmroll relies on inside vLLM: 0.31.0 is the oldest, and tried as 0.32.0 is, the newest.

When a test against a newer vLLM fails, `tests/vllm/test_inside.py` says which of these names or
signatures has changed, and this room is the one to mend. The rest of `engine/vllm` speaks to vLLM
through it, and only `plugin`, `routes` and `refusals` touch a module of vLLM's themselves: one that
`modules` names, handed to them right after it is imported.

- `modules`: `ServingTokens(engine_client, models, online_renderer, ...)` and its coroutine
  `serve_tokens(request, raw_request)`, which answers `/inference/v1/generate`; the `router` on which
  that endpoint stands; by its name in the module that registers it, the application's
  `validation_exception_handler(request, error)`, whose error has the `body`;
  `WeightTransferEngineFactory`, its `register_engine` and its `_registry`.
- `configuration` and `server`: the model's folder, name and length, its number format,
  `additional_config`, whether pixels are normalized on the device, the weight transfer backend,
  quantization, whether embeddings are tied, images a prompt may have, the number of API servers.
- `application`: Starlette's own handlers of exceptions, by class; `state.serving_tokens`.
- `requests`: `token_ids`, `sampling_params`, `content_parts`, and of `features` the `mm_hashes`,
  `mm_placeholders`, `kwargs_data` and `mm_metadata`.
- `prompts`: with neither content parts nor features, `ServingTokens` asks
  `online_renderer.preprocess_completion` for the prompt as the engine takes it: there, one that is
  prepared already, by `mm_input`, can be given.
- `items`: the renderer's processor, which says how an image's arrays are told apart
  (`_get_mm_fields_config`); its `get_dummy_inputs` and `apply`: a picture of vLLM's own, and what it
  makes of it; and `info.parse_mm_data`, where its own is a video.
- `cache`: the renderer's `mm_processor_cache` with `is_cached_item`, `touch_sender_cache_item`,
  `get_and_update_item`, `invalidate`, and since 0.32 `release_sender_touches`. What it answers for an
  image that the engine has is None, or a handle. `_mm_executor` is the one thread on which it is
  touched, so that its order is that of the engine's own cache.
- `answers`: an answer's `choices`, their `token_ids`, and since 0.32 their `weight_versions`; `error`,
  by which a refusal is known; how a stream says that the engine has failed; `GenerationError`.
- `connector`: the registry of media connectors, by name; `MediaConnector` with `fetch_image` and
  `fetch_image_async`; `MediaWithBytes`, a picture and the bytes by which vLLM names it where the
  request does not; `GracefulHTTPError`, which becomes an answer of its status.
- `transfer`, the same in 0.31 and 0.32: of the engine's client `pause_generation`,
  `resume_generation`, `reset_prefix_cache`, `reset_encoder_cache`, `start_weight_update`,
  `update_weights`, `finish_weight_update`, `update_weight_version`, `get_weight_version`.
  That vLLM asks its workers in the order of their ranks, and reads their answers up to the first error;
  `get_world_group`, in which they agree: its `cpu_group`, `world_size` and `rank_in_group`, with the
  ranks of one engine, as many as `parallel_config.world_size`, side by side.
  Weight transfer engines: registered under a name that `--weight-transfer-config` says, made by each
  worker, and told to `receive_weights` between `start_weight_update` and `finish_weight_update`.
  Layerwise reloading: `initialize_layerwise_reload`, the model's `load_weights`, which takes the names
  of a checkpoint and gives those of the parameters, and `finalize_layerwise_reload`. The loader's
  `get_all_weights`, which gives the checkpoint's own tensors. A layer's `quant_method`, whose
  `process_weights_after_loading` makes what its kernels read of its tensors: on a CPU, a copy in
  another order.

vLLM is imported where it is used, but in `transfer`, which only a process of vLLM's own imports.
"""
