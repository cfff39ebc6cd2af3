"""Images with nothing between them: taken as the model's own processor writes them, unless they would be one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from filmroll.engine.images.resolve import Claims, References, claims_of
from filmroll.errors import PlacementError
from filmroll.families import Family, load_family
from filmroll.store import open_store
from filmroll.wire.descriptor import ImageDescriptor
from filmroll.wire.generate import Features, GenerateRequest, Placeholder, SamplingParams
from filmroll.wire.reference import write_reference
from tests.train.every_case import CASES


def claimed(family: Family, descriptors: Sequence[ImageDescriptor], between: Sequence[int]) -> Claims:
    """What a request claims whose images have just these tokens between them."""
    tokens, spans = [65], []
    for descriptor in descriptors:
        spans.append(Placeholder(offset=len(tokens), length=descriptor.tokens))
        tokens += [*family.expansion(descriptor), *between]
    modality = family.vllm_modality or "image"
    features = Features(
        mm_hashes={modality: [one.image.sha256 for one in descriptors]},
        mm_placeholders={modality: spans},
        kwargs_data={modality: [write_reference(one) for one in descriptors]},
    )
    request = GenerateRequest([*tokens, 66], SamplingParams(max_tokens=1), features=features)
    return claims_of(request, References(modality, {}, tuple(descriptors)), descriptors, family)


@pytest.mark.parametrize("case", ["tiny", "glm4v", "gemma3", "idefics3", "llava_onevision", "mistral3", "pixtral"])
def test_only_those_are_refused_whose_tokens_would_be_one_run(case: str, tmp_path: Path) -> None:
    CASES[case].build(tmp_path / "model")
    family, store = load_family(tmp_path / "model"), open_store(tmp_path / "store")
    noise = np.random.default_rng(0)
    images = [family.describe(store.put(noise.integers(0, 256, (64, 40, 3), np.uint8))) for _ in range(2)]
    assert len(claimed(family, images, [70]).descriptors) == 2
    if case in ("tiny", "glm4v"):
        # Their templates write what begins and ends an image outside of its placeholder.
        with pytest.raises(PlacementError, match="no token stands between it and the image before it") as refused:
            claimed(family, images, [])
        assert refused.value.index == 1
    else:
        assert len(claimed(family, images, []).descriptors) == 2
