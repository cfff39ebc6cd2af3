"""filmroll: reinforcement learning of vision-language models whose images travel as references.

    store = filmroll.open_store("images")
    image = store.put("screenshot.png")             # written once, content-addressed
    family = filmroll.load_family("path/to/model")
    family.layout(image.width, image.height)        # grid and placeholder tokens, from the header
    renderer = filmroll.load_renderer("path/to/model", store)
    prompt = renderer.render(messages)              # tokens and references, no pixels
    filmroll.Materializer(store, family).load(prompt.images)   # verified pixels, beside a model

Importing this loads neither torch nor transformers.
"""

from filmroll.errors import FilmrollError
from filmroll.families import Family, Layout, load_family
from filmroll.image import ImageRef
from filmroll.materialize import Materialized, Materializer
from filmroll.render import Rendered, Renderer, load_renderer
from filmroll.store import Limits, Store, open_store
from filmroll.wire.descriptor import ImageDescriptor

__all__ = [
    "Family",
    "FilmrollError",
    "ImageDescriptor",
    "ImageRef",
    "Layout",
    "Limits",
    "Materialized",
    "Materializer",
    "Rendered",
    "Renderer",
    "Store",
    "load_family",
    "load_renderer",
    "open_store",
]
