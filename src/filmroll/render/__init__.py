"""From messages to tokens: text by the renderers library, images as placeholders worked out from headers.

The writers' wing: no torch, no image processor."""
