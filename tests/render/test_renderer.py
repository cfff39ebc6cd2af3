"""Rendering: one pad per image in logical tokens, the model's own count in expanded ones, turns that extend turns."""

import base64
import io
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer

from filmroll.errors import (
    ConfigError,
    ImageError,
    LayoutError,
    PlaceholderTextError,
    PrefixError,
    PromptTooLongError,
    RenderError,
)
from filmroll.materialize import check_placements
from filmroll.render import load_renderer
from filmroll.store import open_store


def picture(width=32, height=32, color=(200, 30, 30)):
    return Image.new("RGB", (width, height), color)


def image(*arguments, **options):
    return {"type": "image", "image": picture(*arguments, **options)}


def text(words):
    return {"type": "text", "text": words}


def user(*content):
    return {"role": "user", "content": list(content)}


def test_a_prompt_has_one_pad_an_image_and_expands_to_the_models_count(renderer):
    prompt = renderer.render([user(image(32, 32), text("and"), image(96, 64))])
    assert prompt.logical.count(prompt.family.placeholders.pad) == 2
    assert [one.tokens for one in prompt.images] == [1, 6]
    expanded = prompt.expanded()
    assert expanded.token_ids.tolist().count(prompt.family.placeholders.pad) == 7
    check_placements(expanded.token_ids, expanded.offsets, prompt.images, renderer.family)


def test_text_alone_is_what_renderers_makes_of_it(renderer):
    messages = [{"role": "system", "content": "Be brief."}, user(text("Hello"))]
    prompt = renderer.render(messages)
    assert renderer.tokenizer.decode(prompt.logical) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.expanded().token_ids.tolist() == prompt.logical


def test_every_way_to_name_an_image_is_the_same_image(renderer, tmp_path):
    out = io.BytesIO()
    picture().save(out, "PNG")
    data = out.getvalue()
    (tmp_path / "a picture.png").write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    stored = renderer.store.put(data)
    sources = [data, tmp_path / "a picture.png", (tmp_path / "a picture.png").as_uri(), uri, stored]
    parts = [{"type": "image", "image": source} for source in sources]
    parts += [{"type": "image_url", "image_url": {"url": uri}}, {"type": "image_url", "image_url": uri}]
    prompt = renderer.render([user(*parts)])
    assert {one.image for one in prompt.images} == {stored}


def test_images_of_tool_messages_count_too(renderer):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    messages = [user(text("Look")), call, {"role": "tool", "content": [image(), text("that is it")]}]
    assert len(renderer.render(messages).images) == 1


def test_an_image_where_the_template_drops_it_is_an_error(renderer):
    with pytest.raises(RenderError, match="0 image pads of 1 images"):
        renderer.render([{"role": "system", "content": [image(), text("x")]}, user(text("x"))])


@pytest.mark.parametrize("placeholder", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
@pytest.mark.parametrize(
    "make",
    [
        lambda typed: [user(text(f"look: {typed}"))],
        lambda typed: [{"role": "user", "content": typed}],
        lambda typed: [user(text(typed[:4]), text(typed[4:]))],
        lambda typed: [{"role": "system", "content": typed}, user(text("x"))],
        lambda typed: [user(text("x")), {"role": "assistant", "content": typed}, user(text("y"))],
        lambda typed: [
            user(text("x")),
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {typed: 1}}}]},
            {"role": "tool", "content": "y"},
        ],
    ],
)
def test_a_typed_placeholder_is_refused(renderer, make, placeholder):
    with pytest.raises(PlaceholderTextError):
        renderer.render(make(placeholder))


def test_a_placeholder_in_a_tools_description_is_refused(renderer):
    tool = {"name": "f", "description": "<|image_pad|>", "parameters": {}}
    with pytest.raises(PlaceholderTextError, match="tools"):
        renderer.render([user(text("x"))], tools=[tool])


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ({"type": "image"}, RenderError),
        ({"type": "image", "image": b"nothing"}, ImageError),
        ({"type": "image", "image": "/no/such/file.png"}, ImageError),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,????"}}, ImageError),
        ({"type": "image", "image": 7}, ImageError),
        ({"type": "image", "image": picture(1, 1000)}, LayoutError),
    ],
)
def test_a_bad_image_is_one_clear_error_and_rendering_goes_on(renderer, part, error):
    with pytest.raises(error):
        renderer.render([user(part)])
    assert renderer.render([user(image())]).images


def test_a_turn_that_cannot_be_extended_says_so(renderer):
    prompt = renderer.render([user(text("x"))])
    with pytest.raises(PrefixError):
        renderer.bridge(prompt, [1, 2], [{"role": "assistant", "content": "y"}])
    with pytest.raises(PrefixError):
        renderer.bridge(prompt, [1, 2], [])
    with pytest.raises(PrefixError, match="placeholder"):
        renderer.bridge(prompt, [prompt.family.placeholders.pad], [user(text("y"))])
    end = renderer.stop_token_ids[0]
    with pytest.raises(PrefixError):
        renderer.bridge(prompt, [1, end, 2], [user(text("y"))])


def test_what_the_text_renderer_cannot_do_is_a_render_error(renderer):
    video = {"type": "video", "video": "a.mp4"}
    with pytest.raises(RenderError):
        renderer.render([user(video)])
    prompt = renderer.render([user(text("x"))])
    with pytest.raises(RenderError):
        renderer.bridge(prompt, renderer.stop_token_ids[:1], [user(video)])


def test_a_refused_message_leaves_no_image_behind(renderer):
    with pytest.raises(PlaceholderTextError):
        renderer.ingest([user(image(), text("<|image_pad|>"))])
    assert not renderer.store.shelf.root.exists()


def test_a_prompt_that_is_too_long_is_refused_with_its_counts(renderer, tiny_model):
    messages = [user(image(96, 64), text("and"), image(32, 32))]
    prompt = renderer.render(messages)
    length = len(prompt.expanded().token_ids)
    bounded = load_renderer(tiny_model, renderer.store, max_tokens=length)
    assert bounded.render(messages).logical == prompt.logical
    end = renderer.stop_token_ids[:1]
    counts = rf"takes {length + 12} tokens, {length} are allowed: .*, 7 belong to 2 images"
    with pytest.raises(PromptTooLongError, match=counts) as caught:
        bounded.bridge(prompt, end, [user(text("more"))])
    assert caught.value.wire()["type"] == "prompt_too_long"
    assert len(renderer.bridge(prompt, end, [user(text("more"))]).expanded().token_ids) == length + 12


def test_a_bound_is_found_without_expanding(tiny_model, tmp_path, monkeypatch):
    """An image's tokens are known from its descriptor: nothing of that length is built."""
    monkeypatch.setattr("filmroll.render.renderer.expand", None)
    bounded = load_renderer(tiny_model, open_store(tmp_path), max_tokens=10)
    with pytest.raises(PromptTooLongError):
        bounded.render([user(image(1024, 1024))])


def test_prompts_are_bounded_through_load_renderer(tiny_model, tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(PromptTooLongError, match="3 are allowed"):
        load_renderer(tiny_model, store, max_tokens=3).render([user(text("x"))])
    with pytest.raises(ConfigError, match="max_tokens"):
        load_renderer(tiny_model, store, max_tokens=0)
    with pytest.raises(ConfigError, match="colour"):
        load_renderer(tiny_model, store, options={"colour": True})


def test_strings_among_parts_are_text(renderer):
    assert renderer.render([user("a", text("b"), {"text": "c"})]) == renderer.render(
        [user(text("a"), text("b"), text("c"))]
    )


def test_a_tokenizer_that_pads_and_cuts_is_told_not_to(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(folder / "tokenizer.json"))
    store = open_store(tmp_path / "images")
    messages = [user(text("a long enough text"))]
    assert (
        load_renderer(folder, store).render(messages).logical
        == load_renderer(tiny_model, store).render(messages).logical
    )


parts = st.lists(
    st.one_of(
        st.text(max_size=20).filter(lambda words: "<|" not in words).map(text),
        st.tuples(st.integers(1, 200), st.integers(1, 200)).map(lambda size: image(*size)),
    ),
    max_size=4,
)
turns = st.lists(st.tuples(parts, st.lists(st.integers(0, 200), max_size=12), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns)
def test_law_prefix(renderer, turns):
    """Turn n+1's tokens begin with turn n's, sampled ones included, expanded as well as logical."""
    end = renderer.stop_token_ids[0]
    prompt = renderer.render([user(text("begin"))])
    for content, sampled, ended in turns:
        completion = [*sampled, end] if ended else sampled
        longer = renderer.bridge(prompt, completion, [user(*content)])
        before = [*prompt.logical, *completion]
        assert longer.logical[: len(before)] == before
        assert longer.images[: len(prompt.images)] == prompt.images
        assert len(longer.sampled) == len(longer.logical)
        assert sum(longer.sampled) == sum(prompt.sampled) + len(completion)
        expanded, earlier = longer.expanded(), prompt.expanded()
        np.testing.assert_array_equal(expanded.token_ids[: len(earlier.token_ids)], earlier.token_ids)
        assert expanded.offsets[: len(earlier.offsets)] == earlier.offsets
        check_placements(expanded.token_ids, expanded.offsets, longer.images, renderer.family)
        assert len(expanded.token_ids) == longer.expanded_length
        prompt = longer


def test_the_answers_text_comes_back(renderer):
    tokens = renderer.tokenizer.encode("ABC")
    assert renderer.parse([*tokens, renderer.stop_token_ids[0]]) == "ABC"
