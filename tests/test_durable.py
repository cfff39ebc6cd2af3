"""A folder is whole or not there, whatever happens while it is filled."""

import os

import pytest

from filmroll.durable import whole_folder


def fill(target, text):
    with whole_folder(target) as draft:
        (draft / "a").write_text(text)
        (draft / "b").write_text(text)


def test_it_appears_with_all_its_files(tmp_path):
    fill(tmp_path / "deep" / "x", "one")
    assert {path.name: path.read_text() for path in (tmp_path / "deep" / "x").iterdir()} == {"a": "one", "b": "one"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x"]
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o755


def test_it_replaces_what_bore_its_name(tmp_path):
    fill(tmp_path / "x", "one")
    (tmp_path / "x" / "old").write_text("old")
    fill(tmp_path / "x", "two")
    assert {path.name: path.read_text() for path in (tmp_path / "x").iterdir()} == {"a": "two", "b": "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failure_leaves_what_was_there(tmp_path):
    fill(tmp_path / "x", "one")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "x") as draft:
        (draft / "a").write_text("two")
        raise OSError("full")
    assert (tmp_path / "x" / "a").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_files_are_on_disk_before_the_folder_bears_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda *paths, **keys: (calls.append("rename"), rename(*paths, **keys)))
    fill(tmp_path / "x", "one")
    assert calls == ["sync", "sync", "sync", "rename", "sync"]
