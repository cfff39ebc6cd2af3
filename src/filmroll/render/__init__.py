"""From messages to tokens: text by the renderers library, images as placeholders worked out from headers.

The writers' wing: no torch, no image processor.
"""

from filmroll.render.answer import Answer, ToolCall
from filmroll.render.expand import Expanded, expand
from filmroll.render.pool import RendererPool
from filmroll.render.renderer import Rendered, Renderer, load_renderer

__all__ = ["Answer", "Expanded", "Rendered", "Renderer", "RendererPool", "ToolCall", "expand", "load_renderer"]
