"""Fetching a checkpoint from the Hub: those of its files that a pipeline needs, all of one commit."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from calotype.core import hub
from calotype.core.config import read_json
from calotype.core.errors import ModelFilesError
from calotype.pipelines.components import INDEX

logger = logging.getLogger(__name__)


def fetch(
    repository: str,
    *,
    variant: str | None,
    use_safetensors: bool | None,
    passed: tuple[str, ...],
    options: hub.HubOptions,
) -> Path:
    """The local snapshot of ``repository`` with a pipeline's files in it.

    Components named in ``passed`` are not downloaded. When the Hub cannot be reached, what an earlier download left in
    the cache is used. Raises ``ModelFilesError`` with what to do.
    """
    from huggingface_hub import constants

    if options.local_files_only or constants.HF_HUB_OFFLINE:
        return hub.snapshot(repository, None, options)
    try:
        files, commit = hub.list_files(repository, options)
    except ModelFilesError as error:
        try:
            folder = hub.snapshot(repository, None, replace(options, local_files_only=True))
        except ModelFilesError:
            raise error from None
        logger.warning("%s Using the copy in the cache.", error)
        return folder
    pinned = options.at(commit or None)
    index = read_json(hub.find_file(repository, INDEX, options=pinned))
    needed = hub.needed_files(files, index, variant=variant, use_safetensors=use_safetensors, skip=passed)
    return hub.snapshot(repository, needed, pinned)
