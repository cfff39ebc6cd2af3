"""What is public is meant to be, and the core needs no model library."""

import subprocess
import sys

import filmroll


def test_the_public_names_are_these():
    assert set(filmroll.__all__) == {
        "Family", "FilmrollError", "ImageDescriptor", "ImageRef", "Layout", "Limits", "Materialized", "Materializer",
        "Rendered", "Renderer", "Store", "load_family", "load_renderer", "open_store",
    }  # fmt: skip
    for name in filmroll.__all__:
        assert getattr(filmroll, name).__doc__, name


def test_the_core_imports_without_torch_and_transformers():
    rooms = (
        "filmroll, filmroll.rollout.worker, filmroll.run.courses.orchestrator, filmroll.run.members.roles, filmroll.cli"
    )
    check = f"import sys, {rooms}; sys.exit(bool({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_writers_render_without_torch(tiny_model, tmp_path):
    """The whole writers' wing at work: ingest, layout, text, tokens."""
    check = f"""
import sys
import filmroll
renderer = filmroll.load_renderer({str(tiny_model)!r}, filmroll.open_store({str(tmp_path)!r}))
prompt = renderer.render([{{"role": "user", "content": [{{"type": "text", "text": "hello"}}]}}])
assert prompt.logical
sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
