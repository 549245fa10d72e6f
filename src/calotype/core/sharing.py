"""Publishing what can be saved: models, schedulers, pipelines."""

from __future__ import annotations

import inspect
import tempfile
from typing import Any

from calotype.core import hub


class PushToHubMixin:
    """For classes with ``save_pretrained(folder, ...)``."""

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> str:
        """Save into a temporary folder and upload that to a Hub repository, which is made if it does not exist.

        Returns the address of the commit. Raises ``ModelFilesError`` if the Hub refuses.
        """
        save: Any = self.save_pretrained  # type: ignore[attr-defined]
        offered = {"safe_serialization": safe_serialization, "variant": variant}
        taken = inspect.signature(save).parameters
        with tempfile.TemporaryDirectory() as folder:
            save(folder, **{name: value for name, value in offered.items() if name in taken})
            return hub.upload_folder(
                folder,
                repo_id,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                private=private,
                token=token,
                create_pr=create_pr,
                path_in_repo=subfolder,
            )
