"""Routes of filmroll's own on vLLM's server, beside `/inference/v1/generate`.

They stand on the router of that endpoint: it is there wherever they make sense, and `--api-key` and
`--enable-scale-out` hold for them too. vLLM's endpoint plugins would have to be named in
`VLLM_PLUGINS`, and its own weight routes want `VLLM_SERVER_DEV_MODE`.
"""

from __future__ import annotations

from types import ModuleType

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from filmroll.engine.http import Endpoint, answering, method_error, read_version
from filmroll.engine.vllm.inside.application import serving_of
from filmroll.engine.vllm.installed import Installed, installed
from filmroll.engine.vllm.references import References
from filmroll.engine.vllm.weights import Weights
from filmroll.errors import WeightsError
from filmroll.wire.capabilities import ROUTE as CAPABILITIES
from filmroll.wire.capabilities import Capabilities, Way

METHODS = frozenset({"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"})
INSTALLED = "filmroll_routes"
"""The attribute of vLLM's module that says that they are there."""


def install(module: ModuleType) -> None:
    """Put the routes on the module's router, once."""
    if hasattr(module, INSTALLED):
        return
    setattr(module, INSTALLED, True)
    for path, endpoint, method in (
        ("/inference/v1/update_weights", update_weights, "POST"),
        ("/inference/v1/weight_info", weight_info, "GET"),
        (CAPABILITIES, capabilities, "GET"),
    ):
        module.router.add_api_route(path, answering(endpoint), methods=[method])
        # vLLM's own answer to other methods would not say which one is meant.
        others = sorted(METHODS - {method})
        module.router.add_api_route(path, _only(method), methods=others, include_in_schema=False)


def _only(method: str) -> Endpoint:
    async def refuse(request: Request) -> Response:
        return method_error(request, method)

    return refuse


async def update_weights(request: Request) -> Response:
    version = await read_version(request)
    return JSONResponse({"version": await _given_weights(request).update(version)})


async def weight_info(request: Request) -> Response:
    return JSONResponse({"version": await _given_weights(request).version()})


async def capabilities(request: Request) -> Response:
    ours = _installed(request)
    said = describe(ours.references, weights=ours.weights is not None)
    return Response(msgspec.json.encode(said), media_type="application/json")


def describe(references: References, *, weights: bool) -> Capabilities:
    server, families = references.server, references.families
    parts: list[Way] = [] if references.only_references else ["content_parts"]
    return Capabilities(
        engine="vllm",
        engine_version=server.version,
        model=server.name,
        max_model_len=server.max_model_len,
        ways=["references", *parts] if families else parts,
        family=families[0].name if families else "",
        fingerprint=families[0].fingerprint if families else "",
        recipes=[family.recipe for family in families],
        hashes=bool(families),
        weights=weights,
    )


def _installed(request: Request) -> Installed:
    return installed(serving_of(request))


def _given_weights(request: Request) -> Weights:
    if (weights := _installed(request).weights) is None:
        raise WeightsError("this engine was started without a folder to take weights from")
    return weights
