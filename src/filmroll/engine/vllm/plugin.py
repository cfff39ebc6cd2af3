"""The entry point: vLLM calls `register` in every one of its processes, and only API servers are changed.

Four modules of vLLM are looked at right after they are imported: the one that answers requests, the
router that it stands on, the one that says what is wrong with a request, and, in workers, the list of
ways in which weights can come.

`ServingTokens` is what answers `/inference/v1/generate`. It is wrapped when its module is imported,
which engine cores and workers never do: there, registering costs nothing. A request without
references or stored images goes to vLLM's own method untouched, or nowhere if it brings images where
only references are taken.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from filmroll.engine.vllm import identity
from filmroll.engine.vllm.inside import modules
from filmroll.engine.vllm.inside.configuration import BACKEND
from filmroll.engine.vllm.installed import ATTRIBUTE, Installed, installed


def register() -> None:
    """Have references served wherever this process turns out to be an API server. May be called twice."""
    identity.establish()
    after_import = (
        (modules.SERVING, install),
        (modules.ROUTER, _add_routes),
        (modules.VALIDATION, _speak_for),
        (modules.TRANSFERS, _add_transfer),
    )
    for name, then in after_import:
        if (module := sys.modules.get(name)) is not None:
            then(module)
        elif not any(isinstance(finder, _AfterImport) and finder.name == name for finder in sys.meta_path):
            sys.meta_path.insert(0, _AfterImport(name, then))


def install(module: ModuleType) -> None:
    """Wrap the module's `ServingTokens`, once."""
    serving = module.ServingTokens
    if hasattr(serving, ATTRIBUTE):
        return
    construct, serve = serving.__init__, serving.serve_tokens

    @wraps(construct)
    def constructed(self: Any, *args: Any, **kwargs: Any) -> None:
        # Not above: this needs what only a reader has installed.
        from filmroll.engine.vllm.inside.server import Server
        from filmroll.engine.vllm.parts import ContentParts
        from filmroll.engine.vllm.references import References
        from filmroll.engine.vllm.weights import weights_of

        construct(self, *args, **kwargs)
        server = Server(self, serve)
        references = References(server)
        parts = ContentParts(server, references.families)
        setattr(self, ATTRIBUTE, Installed(references, parts, weights_of(server)))

    @wraps(serve)
    async def serve_tokens(self: Any, request: Any, raw_request: Any = None) -> Any:
        ours = installed(self)
        if ours.references.takes(request):
            answer = await ours.references.serve(request, raw_request)
        else:
            ours.references.admit(request, raw_request)
            if ours.parts.concern(request):
                answer = await ours.parts.serve(request, raw_request)
            else:
                answer = await serve(self, request, raw_request)
        return answer if ours.weights is None else ours.weights.named(answer)

    serving.__init__, serving.serve_tokens = constructed, serve_tokens
    setattr(serving, ATTRIBUTE, None)


def _add_routes(module: ModuleType) -> None:
    from filmroll.engine.vllm import routes

    routes.install(module)


def _add_transfer(module: ModuleType) -> None:
    """Let `--weight-transfer-config` name ours."""
    factory = module.WeightTransferEngineFactory
    if BACKEND not in factory._registry:
        factory.register_engine(BACKEND, "filmroll.engine.vllm.inside.transfer", "FolderTransfer")


def _speak_for(module: ModuleType) -> None:
    from filmroll.engine.vllm import refusals

    refusals.install(module)


class _AfterImport(MetaPathFinder):
    """Does something with one module right after it is first imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.then)
        return spec


class _Loader(Loader):
    """A module's own loader, and then something more."""

    def __init__(self, loader: Loader, then: Callable[[ModuleType], None]) -> None:
        self.loader, self.then = loader, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        self.then(module)
