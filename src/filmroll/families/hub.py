"""A model's name becomes a folder: one of this machine, else of the Hugging Face cache, else of the hub.

Only the small files that tell how a model sees and spells are fetched here; whoever loads weights lets
transformers fetch them by the same name. A name is looked up once in a process, and what the cache
holds is taken without asking the hub: engine and trainer then mean the same files. The hub has
HF_HUB_ETAG_TIMEOUT seconds for each answer, 10 unless it is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filmroll.errors import CheckpointError

FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_NAME = re.compile(r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[\w./-]{1,128}))?")


def is_hub_name(model: str | Path) -> bool:
    """Whether it could be a name of the hub, `org/name` or `org/name@revision`, and is no folder here."""
    text = str(model)
    return not Path(text).is_dir() and not text.startswith((".", "~")) and _NAME.fullmatch(text) is not None


def name_and_revision(model: str | Path) -> tuple[str, str | None]:
    """What transformers is told: a folder as it is, a name of the hub without its revision, and that."""
    match = _NAME.fullmatch(str(model)) if is_hub_name(model) else None
    return (str(model), None) if match is None else (match["repo"], match["revision"])


def model_folder(model: str | Path) -> Path:
    """Where the model's files lie; CheckpointError where they are not to be had."""
    if Path(model).is_dir():
        return Path(model)
    match = _NAME.fullmatch(str(model)) if is_hub_name(model) else None
    if match is None:
        raise CheckpointError(
            "the model is not a folder on this machine",
            remedy="Name a folder, or a model of the hub as org/name or org/name@revision",
            private=str(model),
        )
    return _cached(match["repo"], match["revision"]) or _fetched(match["repo"], match["revision"])


def _cached(repo: str, revision: str | None) -> Path | None:
    """The snapshot that the cache holds, if it has what a family reads."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repo, name, revision=revision) for name in FILES]
    config, *processors = found[:3]
    whole = isinstance(config, str) and any(isinstance(one, str) for one in processors)
    return Path(str(config)).parent if whole else None


@cache
def _fetched(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT as TIMEOUT_S

    with _hub_errors(repo):
        # The first file settles which commit the revision is; the others are of the same.
        config = Path(hf_hub_download(repo, FILES[0], revision=revision, etag_timeout=TIMEOUT_S))
        commit = config.parent.name
        there = HfApi().model_info(repo, revision=commit, timeout=TIMEOUT_S).siblings or []
        for name in {one.rfilename for one in there} & set(FILES[1:]):
            hf_hub_download(repo, name, revision=commit, etag_timeout=TIMEOUT_S)
    return config.parent


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    from huggingface_hub import errors

    def said(problem: str, remedy: str, error: Exception) -> CheckpointError:
        private = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
        return CheckpointError(f"the model {repo}: {problem}", remedy=remedy, private=private)

    try:
        yield
    except errors.GatedRepoError as error:
        raise said(
            "the hub gives it only to those it knows", "Ask for access there, then set HF_TOKEN", error
        ) from None
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise said(
            "it is no folder on this machine, and the hub has no such model or revision",
            "Correct the name; for a private model set HF_TOKEN",
            error,
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise said(
            f"{FILES[0]}, {FILES[1]} and the tokenizer's files are neither in the cache nor to be had from the hub",
            "Unset HF_HUB_OFFLINE, or fetch them where there is a network (`hf download`) and copy the folder here",
            error,
        ) from None
    except errors.EntryNotFoundError as error:
        raise said(f"the hub has no {FILES[0]} for it", "Name a model in transformers' form", error) from None
    except Exception as error:  # noqa: BLE001 the library lets through whatever its client raises
        raise said("the hub does not give its files", "Try again later, or name a local folder", error) from None
