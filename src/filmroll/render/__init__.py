"""From messages to tokens: text by the renderers library, images as placeholders worked out from headers.

The writers' wing: no torch, no image processor.
"""

from filmroll.render.expand import Expanded, expand
from filmroll.render.pool import RendererPool
from filmroll.render.renderer import Rendered, Renderer, load_renderer

__all__ = ["Expanded", "Rendered", "Renderer", "RendererPool", "expand", "load_renderer"]
