"""Several models of one class that work as one, kept in numbered folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import nn

from calotype.core.errors import InputError, ModelFilesError
from calotype.core.sending import Sender
from calotype.models.modeling import ModelMixin
from calotype.models.network import Network

logger = logging.getLogger(__name__)


class ModelGroup(Network):
    """Models that are saved as ``folder``, ``folder_1``, ``folder_2`` and so on.

    Subclasses are final. They name the class of the models and the attribute that holds them, which begins the keys of
    the state dictionary; their constructors take the list of models.
    """

    _member_class: ClassVar[type[ModelMixin]]
    _members_name: ClassVar[str] = "nets"
    _supports_gradient_checkpointing = True

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if not models:
            raise InputError(f"{type(self).__name__} needs at least one {self._member_class.__name__}.")
        setattr(self, self._members_name, nn.ModuleList(models))
        self.training = any(model.training for model in models)  # acceleration leaves training alone

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> None:
        """Write the first model into ``save_directory``, the others beside it with a number after the name.

        Raises ``ModelFilesError``, before anything is written, if a folder with the next number is there, which
        would be taken for one more model of the group.
        """
        models: Any = getattr(self, self._members_name)
        if (beyond := _numbered(save_directory, len(models))).exists():
            raise ModelFilesError(
                f"{beyond} is there from an earlier save and would be loaded as one more model of the group; remove "
                f"it, or save to another folder."
            )
        for index, model in enumerate(models):
            model.save_pretrained(
                _numbered(save_directory, index),
                is_main_process=is_main_process,
                save_function=save_function,
                safe_serialization=safe_serialization,
                variant=variant,
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """The models in ``pretrained_model_path`` and the numbered folders beside it, in evaluation mode.

        Keyword arguments are those of the single model's ``from_pretrained``. Raises ``ModelFilesError`` if
        there is no such folder.
        """
        return cls._read(pretrained_model_path, None, **kwargs)

    @classmethod
    def _read(
        cls, pretrained_model_path: str | os.PathLike[str], sender: Sender | None, **kwargs: Any
    ) -> Self:
        """As :meth:`from_pretrained`, with the weights on the accelerator by the time that ``sender`` ends."""
        if kwargs.pop("output_loading_info", False):
            raise InputError(f"{cls.__name__}.from_pretrained has no output_loading_info; leave it out.")
        first = Path(pretrained_model_path, kwargs.pop("subfolder", None) or "")
        folders = _folders_from(first)
        if not folders:
            raise ModelFilesError(
                f"There is no folder {first}, where the first {cls._member_class.__name__} of the group should be."
            )
        logger.info("%d models of the group %s are in %s.", len(folders), cls.__name__, first.parent)
        return cls([cls._member_class._read(folder, sender, **kwargs) for folder in folders]).eval()


def _numbered(folder: str | os.PathLike[str], index: int) -> Path:
    path = Path(folder)
    return path.with_name(f"{path.name}_{index}") if index else path


def _folders_from(first: Path) -> list[Path]:
    """The folders of a group, as far as they follow each other."""
    found: list[Path] = []
    following = first
    while following.is_dir():
        found.append(following)
        following = _numbered(first, len(found))
        if not following.is_dir():  # some writers append each number to the name before
            following = _numbered(found[-1], len(found))
    return found
