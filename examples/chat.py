"""Talking to a model about a picture, with the openai package.

    python examples/chat.py

Builds a tiny model in a temporary folder and serves it, so it needs nothing but filmroll[serve]. What the
model says is noise: it has learned nothing yet.
"""

from __future__ import annotations

import base64
import io
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from PIL import Image, ImageDraw

import filmroll
from filmroll.engine.embedded.server import serve
from filmroll.families.tiny import build_tiny_model


def screenshot(text: str) -> Image.Image:
    picture = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(picture).text((40, 40), text, fill="black")
    return picture


def inside(picture: Image.Image) -> str:
    """The picture as a data: URI."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def engine(folder: Path, ready: Connection) -> None:
    serve(
        folder / "model", filmroll.open_store(folder / "images"), folder / "weights", name="tiny", on_ready=ready.send
    )


def talk(url: str, store: filmroll.Store) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    image = store.put(screenshot("Welcome"))
    messages: list[ChatCompletionMessageParam] = []
    for number, source in enumerate((inside(screenshot("Sign in")), image.uri), start=1):
        messages.append(
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": source}},
                    {"type": "text", "text": "where am i?"},
                ],
            }
        )
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=16, seed=number)
        said = answer.choices[0].message.content
        tokens = answer.usage.prompt_tokens if answer.usage else "no"
        print(f"turn {number}: {tokens} tokens in, {source[:40]}...; it says {said!r}")
        pieces = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=16, seed=number, stream=True
        )
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
        print(f"  and in pieces the same, token for token: {streamed == said}")
        messages.append({"role": "assistant", "content": said})


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny_model(folder / "model")
        ready, told = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(target=engine, args=(folder, told))
        process.start()
        try:
            talk(ready.recv(), filmroll.open_store(folder / "images"))
        finally:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
