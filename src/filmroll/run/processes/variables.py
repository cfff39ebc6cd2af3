"""Environment variables of the processes that a run launches."""

from __future__ import annotations

import os
from pathlib import Path

from filmroll.errors import ConfigError
from filmroll.run.config import Config
from filmroll.run.directory import RunDirectory
from filmroll.run.places import resolve

IMAGES = "VF_RENDERER_IMAGE_OFFLOAD_DIR"
"""Names the folder of images to renderers of other systems, which environments may bring along."""


def launched_variables(run: RunDirectory, config: Config) -> dict[str, str]:
    """What launched processes get beside the environment that they inherit.

    `[multimodal]` owns the images' place. Whoever asks the environment is told the same, and where
    the environment says otherwise already, that is an error: half of the images would be elsewhere.
    """
    folder = run.images_folder(config)
    sources = (("the environment", os.environ), ("run.env_vars", config.run.env_vars))
    for source, values in sources:
        if IMAGES in values and not _same(values[IMAGES], folder, run):
            raise ConfigError(
                f"{IMAGES} is {values[IMAGES]!r} in {source}, but this run keeps its images at "
                f"{run.store_url(config)!r}, as [multimodal] says",
                remedy=f"Leave {IMAGES} unset, or set multimodal.store to the same folder",
            )
    return config.run.env_vars | ({} if folder is None else {IMAGES: str(folder)})


def _same(value: str, folder: Path | None, run: RunDirectory) -> bool:
    return folder is not None and resolve(value, run_id=run.path.name).resolve() == folder.resolve()
