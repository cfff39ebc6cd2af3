"""How many trained tokens meet the vocabulary at once, forward and backward."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from filmroll.materialize.feed import load_model
from filmroll.train.learning.forward import forward
from tests.train.every_case import Ground


class Logits(TorchDispatchMode):
    """Notes for how many tokens there is a tensor as wide as the vocabulary."""

    def __init__(self, model):
        super().__init__()
        self.head = model.get_output_embeddings().weight.T.shape
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        wide = isinstance(out, torch.Tensor) and out.ndim > 1 and out.shape[-1] == self.head[-1]
        if wide and out.shape != self.head:
            self.most = max(self.most, out.shape[:-1].numel())
        return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    ground = Ground.of("tiny", tmp_path_factory.mktemp("tiny"))
    return ground, load_model(ground.folder)


def most_at_once(tiny, at_once, dtype="float32"):
    ground, model = tiny
    batch = ground.batch(model)
    with Logits(model) as logits:
        forward(model, ground.family, batch, dtype=dtype, at_once=at_once).logprobs.mean().backward()
    return logits.most, len(batch.token_ids)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("at_once", [1, 7, 32])
def test_no_more_logits_are_there_at_once_than_are_allowed(tiny, at_once, dtype):
    most, _ = most_at_once(tiny, at_once, dtype)
    assert most == at_once


def test_all_are_there_at_once_where_they_may(tiny):
    most, tokens = most_at_once(tiny, 1000)
    assert most == tokens


def test_what_comes_last_is_not_made_again(tiny):
    """So a micro-batch whose logits may all be there at once asks the head once."""
    ground, model = tiny
    asked = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, args, _out: asked.append(len(args[0])))
    batch = ground.batch(model)
    tokens = len(batch.token_ids)
    for at_once in (tokens, tokens - 1):
        forward(model, ground.family, batch, at_once=at_once).logprobs.mean().backward()
    handle.remove()
    assert asked == [tokens, 1, tokens - 1, tokens - 1]
