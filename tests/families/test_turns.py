"""Turns of every family: each extends the one before token for token or is refused, and typed tokens stay text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from filmroll.errors import CheckpointError, ConfigError, PlaceholderTextError, PrefixError, RenderError
from filmroll.render import Rendered, Renderer, load_renderer
from filmroll.store import open_store
from tests.families import chats
from tests.families.cases.base import Case
from tests.families.test_chats import BY_LIBRARY, BY_TEMPLATE, NAMED, with_template
from tests.store.effort import effort

pytestmark = pytest.mark.reliability
KNOWN = [*BY_TEMPLATE, *BY_LIBRARY]
Load = Callable[..., Renderer]


@pytest.fixture(scope="session")
def checkpoint(built: Callable[[Case], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint by its name, once."""

    @cache
    def make(known: str) -> Path:
        name, template, tokens = BY_LIBRARY.get(known) or (known, BY_TEMPLATE[known], ())
        return with_template(built(NAMED[name]), template, tmp_path_factory.mktemp("turns") / "model", tokens)

    return make


@pytest.fixture(scope="session")
def load(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Load:
    @cache
    def make(known: str, **settings: Any) -> Renderer:
        return load_renderer(checkpoint(known), open_store(tmp_path_factory.mktemp("images")), **settings)

    return make


def user(*parts: str | None, role: str = "user") -> dict[str, Any]:
    """A message; None is a picture."""
    picture = {"type": "image", "image": Image.new("RGB", (40, 30))}
    return {"role": role, "content": [picture if part is None else chats.text(part) for part in parts]}


def check_extends(prompt: Rendered, completion: list[int], longer: Rendered) -> None:
    before = [*prompt.logical, *completion]
    assert longer.logical[: len(before)] == before
    assert longer.images[: len(prompt.images)] == prompt.images
    assert longer.logical.count(longer.family.placeholders.pad) == len(longer.images)
    assert len(longer.sampled) == len(longer.logical)
    assert longer.sampled[len(prompt.logical) :] == [
        number < len(completion) for number in range(len(longer.logical) - len(prompt.logical))
    ]
    expanded, earlier = longer.expanded(), prompt.expanded()
    assert expanded.token_ids[: len(earlier.token_ids)].tolist() == earlier.token_ids.tolist()
    assert len(expanded.token_ids) == longer.expanded_length
    assert longer.expanded_length == len(longer.logical) + sum(image.tokens - 1 for image in longer.images)


MARKS = "\ufdd0\ufdd1\ufdd2"
words = st.text(st.characters(codec="utf-8", exclude_characters="<[|" + MARKS), max_size=12)
content = st.lists(st.one_of(st.none(), words), min_size=1, max_size=4)
turns = st.lists(st.tuples(words, st.booleans(), content), min_size=1, max_size=4)


@pytest.mark.parametrize("known", KNOWN)
def test_law_prefix(load: Load, known: str) -> None:
    renderer = load(known)
    end = renderer.stop_token_ids[0]

    @settings(max_examples=effort(8, 2000), deadline=None)
    @given(content, turns)
    def law(first: list[str | None], turns: list[Any]) -> None:
        prompt = renderer.render([user(*first)])
        for said, ended, parts in turns:
            completion = [*renderer.tokenizer.encode(said), *([end] if ended else [])]
            try:
                longer = renderer.bridge(prompt, completion, [user(*parts)])
            except PrefixError:
                return
            check_extends(prompt, completion, longer)
            if longer.transcript is not None:
                assert renderer.tokenizer.decode(longer.logical) == longer.transcript.text
            prompt = longer

    law()


ANSWERS = {
    "idefics3": " Yes.",
    "smolvlm-spelled_markers": " Yes.",
    "glm4v_moe-released": "\n<think></think>\nYes.",
    "llava_onevision": None,
}
"""What a model says that the template then leaves as it is, where that is not "Yes."; None where there is nothing."""


@pytest.mark.parametrize("known", BY_TEMPLATE)
def test_a_plain_answer_is_extended_unless_the_template_cannot(load: Load, known: str) -> None:
    renderer = load(known)
    answer = ANSWERS.get(known, "Yes.")
    prompt = renderer.render([user(None, "One?")])
    completion = [*renderer.tokenizer.encode(answer or "Yes."), renderer.stop_token_ids[0]]
    if answer is None:
        with pytest.raises(PrefixError, match="otherwise"):
            renderer.bridge(prompt, completion, [user("And?")])
        return
    longer = renderer.bridge(prompt, completion, [user("And", None, "?")])
    check_extends(prompt, completion, longer)
    history = [user(None, "One?"), user(answer.strip(), role="assistant"), user("And", None, "?")]
    assert longer.logical == renderer.render(history).logical
    cut = renderer.bridge(prompt, completion[:-1], [user("And", None, "?")])
    assert cut.logical == longer.logical
    assert not cut.sampled[len(prompt.logical) + len(completion) - 1]


def test_what_the_template_would_rewrite_is_refused(load: Load) -> None:
    gemma, glm = load("gemma3-released"), load("glm4v_moe-released")
    for said in ("Yes. ", " Yes.", "\nYes."):
        completion = [*gemma.tokenizer.encode(said), gemma.stop_token_ids[0]]
        with pytest.raises(PrefixError, match=r"otherwise.*branch"):
            gemma.bridge(gemma.render([user("One?")]), completion, [user("And?")])
    prompt = glm.render([user("One?")])
    completion = [*glm.tokenizer.encode("\n<think>Hm.</think>\nYes."), glm.stop_token_ids[0]]
    with pytest.raises(PrefixError, match="otherwise"):
        glm.bridge(prompt, completion, [user("And?")])
    check_extends(prompt, completion, glm.bridge(prompt, completion, [user(None, role="tool")]))


def test_an_answer_ended_by_another_token_than_the_templates_is_refused(load: Load) -> None:
    gemma = load("gemma3-released")
    eos = gemma.tokenizer.special["<eos>"]
    assert eos in gemma.stop_token_ids
    with pytest.raises(PrefixError, match="the token that ended this one"):
        gemma.bridge(gemma.render([user("One?")]), [*gemma.tokenizer.encode("Yes."), eos], [user("And?")])


def test_what_is_no_turn_is_refused(load: Load) -> None:
    renderer = load("internvl-released")
    prompt, end = renderer.render([user("One?")]), renderer.stop_token_ids[0]
    for completion, messages in [
        ([1, end], []),
        ([1, end], [user("Yes.", role="assistant")]),
        ([1, end, 2], [user("And?")]),
        ([renderer.family.placeholders.pad, end], [user("And?")]),
    ]:
        with pytest.raises(PrefixError):
            renderer.bridge(prompt, completion, messages)
    with pytest.raises(PrefixError, match="otherwise"):
        renderer.bridge(renderer.render([user("One?")], add_generation_prompt=False), [1, end], [user("And?")])
    with pytest.raises(PrefixError):
        renderer.bridge(Rendered(prompt.logical, [], prompt.family), [1, end], [user("And?")])


@pytest.mark.parametrize("known", KNOWN)
def test_the_assistants_words_and_what_ends_them_are_marked(load: Load, known: str) -> None:
    renderer = load(known)
    chat = [user(None, "One?"), user("Yes.", role="assistant"), user("Two?"), user("No.", role="assistant")]
    prompt = renderer.render(chat, add_generation_prompt=False)
    said = [token for token, sampled in zip(prompt.logical, prompt.sampled, strict=True) if sampled]
    ends = [token for token in said if token in renderer.stop_token_ids]
    expected = 1 if known.startswith("glm") else 2  # GLM's answers end with what begins the next turn
    assert len(ends) == expected
    text = renderer.tokenizer.decode([token for token in said if token not in renderer.stop_token_ids])
    for mark in ("<think>", "</think>", " ", "\n"):
        text = text.replace(mark, "")
    assert text == "Yes.No."


def test_what_a_completion_says(load: Load) -> None:
    for known in BY_TEMPLATE:
        renderer = load(known)
        ids = renderer.tokenizer.encode("A b\n")
        assert renderer.parse([*ids, renderer.stop_token_ids[0]]) == renderer.parse(ids) == "A b\n"
    glm = load("glm4v_moe-released")
    assert glm.parse(glm.tokenizer.encode("<think>Hm.</think>Yes.")) == "Yes."


def test_answers_end_where_the_template_and_the_checkpoints_files_say(
    checkpoint: Callable[[str], Path], load: Load, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("gemma3-released"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    renderer = load_renderer(folder, open_store(tmp_path / "images"))
    turn, end = (renderer.tokenizer.special[name] for name in ("<end_of_turn>", "<eos>"))
    assert renderer.stop_token_ids[0] == turn
    assert set(renderer.stop_token_ids) == {turn, end, 7, 9}


@pytest.mark.parametrize("known", KNOWN)
def test_law_typed_tokens_stay_text(load: Load, known: str) -> None:
    """Whatever is typed, in whatever pieces, no special token comes of it, and it reads as it was typed."""
    renderer, strict = load(known, typed="escape"), load(known)
    special = sorted({*renderer.tokenizer.special, *renderer.family.placeholders.texts})
    spelled = st.sampled_from(special)
    typed = st.lists(st.one_of(spelled, spelled.map(lambda text: text[:-1]), spelled.map(lambda text: text[1:]), words))
    ids = set(renderer.tokenizer.special.values())
    frame = [token for token in renderer.render([user("\u2603")]).logical if token in ids]

    @settings(max_examples=effort(25, 5000), deadline=None)
    @given(typed)
    def law(pieces: list[str]) -> None:
        whole = "".join(pieces)
        for message in (user(*pieces, "\u2603"), {"role": "user", "content": whole + "\u2603"}):
            prompt = renderer.render([message])
            assert [token for token in prompt.logical if token in ids] == frame
            assert not prompt.images
            if any(one in whole for one in special):
                with pytest.raises(PlaceholderTextError):
                    strict.render([message])
            else:
                assert strict.render([message]).logical == prompt.logical
        # Of the last one: some templates strip a text, and write parts on lines of their own.
        assert f"{whole}\u2603".strip() in renderer.tokenizer.decode(prompt.logical)

    law()


@pytest.mark.parametrize("typed", ["refuse", "escape"])
def test_marks_of_our_own_cannot_be_typed(load: Load, typed: str) -> None:
    renderer = load("llava_onevision", typed=typed)
    prompt = renderer.render([user("x", MARKS), user(f"{MARKS}y", role="assistant")], add_generation_prompt=False)
    assert renderer.tokenizer.decode(prompt.logical).count("\ufffd") == 2 * len(MARKS)


@pytest.mark.parametrize("known", KNOWN)
def test_typed_tokens_are_kept_in_tools_and_calls(load: Load, known: str) -> None:
    renderer = load(known, typed="escape")
    pad = renderer.family.placeholders.texts[0]
    tool = {"type": "function", "function": {"name": "f", "description": pad, "parameters": {"type": "object"}}}
    arguments = {"type": "image", pad: pad}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    chat = [user("x"), {"role": "assistant", "content": "y", "tool_calls": [call]}, user("z", pad)]
    assert not renderer.render(chat, tools=[tool]).images
    with pytest.raises(PlaceholderTextError):
        load(known).render(chat[:2])


def test_an_assistants_words_may_hold_the_chats_markup_but_no_image(load: Load) -> None:
    """A model can sample any token but an image's, and its words come back as text."""
    renderer = load("internvl-released")
    said = [user("x"), user("<|im_start|>", role="assistant"), user("y")]
    prompt = renderer.render(said)
    start = renderer.tokenizer.special["<|im_start|>"]
    assert prompt.logical.count(start) == renderer.render(
        [user("x"), user("", role="assistant"), user("y")]
    ).logical.count(start)
    with pytest.raises(PlaceholderTextError, match="markup"):
        renderer.render([user("<|im_start|>")])
    with pytest.raises(PlaceholderTextError, match="image"):
        renderer.render([user("x"), user("<IMG_CONTEXT>", role="assistant")])


@pytest.mark.parametrize(
    ("template", "problem"),
    [("", "no chat template"), ("{% if %}", "cannot be read"), ("{{ messages[0].content }}", "ends an answer")],
)
def test_a_checkpoint_that_cannot_chat_says_so(
    checkpoint: Callable[[str], Path], tmp_path: Path, template: str, problem: str
) -> None:
    folder = with_template(checkpoint("internvl-released"), template, tmp_path / "model")
    for file in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / file).read_text())
        values.pop("eos_token", None)
        values.pop("eos_token_id", None)
        (folder / file).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=problem):
        load_renderer(folder, open_store(tmp_path / "images"))


def test_what_a_template_refuses_is_a_render_error(load: Load) -> None:
    gemma = load("gemma3-released")
    with pytest.raises(RenderError, match="no such role"):
        gemma.render([user("x", role="tool")])
    with pytest.raises(RenderError, match="video"):
        gemma.render([{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}])
    for broken in ("x", [7], [{"content": "x"}], [{"role": "user", "content": [7]}], []):
        with pytest.raises(RenderError):
            gemma.render(broken)


def test_settings_that_mean_nothing_are_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="typed"):
        load("internvl-released", typed="keep")


def test_an_option_that_nothing_reads_is_refused_by_name(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Nothing would tell that it changes nothing. A template has those that it asks for."""
    store = open_store(tmp_path / "images")
    for known, has in [
        ("qwen3-vl", "add_vision_id"),
        ("qwen3.5", "enable_thinking"),
        ("kimi-k2.5", "thinking"),
        ("gemma3-released", "none"),
    ]:
        with pytest.raises(ConfigError, match=rf"no option 'colour'.*{has}"):
            load_renderer(checkpoint(known), store, options={"colour": True})
    with pytest.raises(ConfigError, match=r"does not take the options.*enable_thinking: "):
        load_renderer(checkpoint("qwen3.5"), store, options={"enable_thinking": "maybe"})
    folder = tmp_path / "switched"
    shutil.copytree(checkpoint("gemma3-released"), folder)
    template = "{%- set loud = loud | default(false) %}{% if shouts %}{{ '!' }}{% endif %}" + chats.GEMMA3
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match="It has loud, shouts"):
        load_renderer(folder, store, options={"messages": [], "shouts": True})
    shouting = load_renderer(folder, store, options={"shouts": True})
    assert shouting.tokenizer.decode(shouting.render([user("x")]).logical).startswith("!")
