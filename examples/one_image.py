"""An image's journey by hand: written once, referred to in two turns, developed beside a model.

    python examples/one_image.py

Builds a tiny model in a temporary folder, so it needs nothing but filmroll[torch].
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import filmroll
from filmroll.families.tiny import build_tiny_model
from filmroll.wire.reference import write_reference


def screenshot(text: str) -> Image.Image:
    picture = Image.new("RGB", (640, 480), "white")
    ImageDraw.Draw(picture).text((40, 40), text, fill="black")
    return picture


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = build_tiny_model(Path(folder) / "model")
        store = filmroll.open_store(Path(folder) / "images")

        image = store.put(screenshot("Sign in"))
        print(f"stored once: {image.nbytes:,} bytes, sha256 {image.sha256[:12]}...")

        family = filmroll.load_family(model)
        layout = family.layout(image.width, image.height)
        print(f"the model sees a grid of {layout.grid} patches, {layout.tokens} tokens; no pixel was read for that")

        renderer = filmroll.load_renderer(model, store)
        question = {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "Where am I?"}],
        }
        prompt = renderer.render([question])
        print(f"turn 1: {len(prompt.logical)} logical tokens, {len(prompt.expanded().token_ids)} expanded")

        answer = [*renderer.tokenizer.encode("At a door."), *renderer.stop_token_ids[:1]]
        again = {"role": "user", "content": [{"type": "image", "image": screenshot("Welcome")}]}
        longer = renderer.bridge(prompt, answer, [again])
        before = [*prompt.logical, *answer]
        print(f"turn 2 begins with turn 1, token for token: {longer.logical[: len(before)] == before}")

        references = [write_reference(one) for one in longer.images]
        pixels = sum(family.pixel_bytes(one.image) for one in longer.images)
        print(f"what travels: {sum(map(len, references)):,} bytes of references instead of {pixels:,} bytes of pixels")

        developed = filmroll.Materializer(store, family).load(longer.images)
        shapes = {name: array.shape for name, array in developed.arrays.items()}
        print(f"beside the model: {shapes}, {developed.receipt.verified} images verified")


if __name__ == "__main__":
    main()
