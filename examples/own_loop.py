"""A training loop of one's own: filmroll packs, loads and feeds by reference, the loop is plain torch.

    python examples/own_loop.py

Builds a tiny model in a temporary folder and teaches it what four colours are called, so it needs nothing but
filmroll[torch].
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image

import filmroll
from filmroll.dataset.examples import demonstrated
from filmroll.families.tiny import build_tiny_model
from filmroll.materialize.feed import load_model
from filmroll.train.batches.plan import plan
from filmroll.train.batches.samples import samples
from filmroll.train.learning.forward import forward
from filmroll.train.loading.loader import Loader
from filmroll.train.step import TrainerConfig, TrainStep
from filmroll.wire.training import LossWeights, TrainingSample

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220), "white": (245, 245, 245)}
STEPS, RATE = 30, 3e-3


def lesson(renderer: filmroll.Renderer, name: str) -> list[TrainingSample]:
    """A conversation whose answer is learnt: tokens, and a reference where its picture is."""
    picture = Image.new("RGB", (64, 64), COLORS[name])
    question = {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "colour?"}]}
    rendered = renderer.render([question, {"role": "assistant", "content": name}], add_generation_prompt=False)
    said = demonstrated(name, rendered, list(rendered.sampled), renderer)
    return samples(said, renderer.family, advantage=0.0, weights=LossWeights(cross_entropy=1.0))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = build_tiny_model(Path(folder) / "model")
        store = filmroll.open_store(Path(folder) / "images")
        renderer = filmroll.load_renderer(checkpoint, store)
        lessons = [one for name in COLORS for one in lesson(renderer, name)]

        # Of a tiny model: more threads would only wait for each other.
        torch.set_num_threads(1)
        config, family, model = TrainerConfig(), renderer.family, load_model(checkpoint)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        loader = Loader(filmroll.Materializer(store, family), model, config)
        work = TrainStep(RATE, 0, plan(lessons, family, config).micro_batches)
        learnt = sum(len(one.targets) for one in lessons)
        print(f"{len(lessons)} samples in {len(work.micro_batches)} micro-batches, {learnt} tokens to learn")

        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            loss, sure = 0.0, True
            # While one micro-batch is learnt, the pictures of the next ones are made.
            with loader.batches(work, len(lessons)) as batches:
                for _, batch in batches:
                    out = forward(model, family, batch)
                    part = -(out.logprobs * batch.cross_entropy_weights).sum() / learnt
                    part.backward()  # type: ignore[no-untyped-call]
                    loss += float(part.detach())
                    sure &= bool((out.logprobs.exp() > 0.5).all())
            optimizer.step()
            if step % 10 == 0:
                seen = f"{out.receipt.consumed} of {out.receipt.referenced} images seen"
                print(f"step {step}: loss {loss:.3f}, {seen}; knows its answers token for token: {sure}")


if __name__ == "__main__":
    main()
