"""Where a model's files are: a local folder, or a repository of the Hugging Face Hub and its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from calotype.core.errors import InputError, ModelFilesError
from calotype.core.files import check_inside
from calotype.core.selection import Selection, needed_files, select_files

__all__ = [
    "HubOptions",
    "Selection",
    "commit_of",
    "find_file",
    "is_local",
    "list_files",
    "needed_files",
    "select_files",
    "snapshot",
    "try_find_file",
    "upload_folder",
]

Location = str | os.PathLike[str]

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubOptions:
    """How the Hub is asked for files; the fields are the keyword arguments that ``from_pretrained`` takes."""

    cache_dir: Location | None = None
    force_download: bool = False
    proxies: Mapping[str, str] | None = None
    local_files_only: bool | None = None
    token: bool | str | None = None
    revision: str | None = None

    @classmethod
    def take(cls, kwargs: MutableMapping[str, Any]) -> HubOptions:
        """The options among ``kwargs``, which are removed from it."""
        taken = {field.name: kwargs.pop(field.name) for field in fields(cls) if field.name in kwargs}
        return cls(**taken)

    def at(self, commit: str | None) -> HubOptions:
        """The same options pinned to a commit, so that all files of a model come from one state of it."""
        return self if commit is None else replace(self, revision=commit)

    def _arguments(self) -> dict[str, Any]:
        # proxies are read from the environment by today's huggingface_hub, which takes no such argument
        return {
            "cache_dir": self.cache_dir,
            "force_download": bool(self.force_download),
            "local_files_only": bool(self.local_files_only),
            "token": self.token,
            "revision": self.revision,
            "library_name": "calotype",
        }


class _Absent(ModelFilesError):
    """The place was reached, or is known offline, and does not have the file."""


@contextmanager
def _explained(repository: str, what: str, revision: str | None) -> Iterator[None]:
    """Turns what huggingface_hub raises into a ``ModelFilesError`` that says what to do."""
    from huggingface_hub import constants, errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.HFValidationError as error:
        raise ModelFilesError(
            f"{repository!r} is neither an existing folder nor the name of a Hub repository: give the path of a "
            f"folder, or a name such as 'owner/model'."
        ) from error
    except errors.GatedRepoError as error:
        raise ModelFilesError(
            f"The repository {repository!r} is gated: ask for access at https://huggingface.co/{repository}, then "
            f"log in with `hf auth login` or pass `token=`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFilesError(
            f"There is no folder {repository!r} here, and the Hub has no repository of this name that you may read: "
            f"check the spelling; for a private one log in with `hf auth login` or pass `token=`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelFilesError(
            f"The repository {repository!r} has no revision {revision!r}: give one of its branches, tags or "
            f"commits (they are listed at https://huggingface.co/{repository}/tree/main)."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set: unset it"
        elif "local_files_only" in str(error) or "outgoing traffic" in str(error):
            why = "`local_files_only=True` forbids downloading: leave it out"
        else:
            why = "the Hub cannot be reached: check the connection"
        raise _Absent(
            f"{what} of {repository!r}{at} is not in the local cache, and {why}, or give a local folder."
        ) from error
    except errors.EntryNotFoundError as error:
        raise _Absent(f"The repository {repository!r}{at} has no {what}.") from error
    except (errors.HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise ModelFilesError(
            f"{what} of {repository!r}{at} could not be fetched from the Hub: {error}. Try again; what is already "
            f"in the cache is kept."
        ) from error


def commit_of(path: Location) -> str | None:
    """The commit that a file of the Hub's cache belongs to; ``None`` for files elsewhere."""
    parts = Path(path).parts
    if "snapshots" not in parts:
        return None
    following = parts[parts.index("snapshots") + 1 :]
    return following[0] if following and _COMMIT.fullmatch(following[0]) else None


def is_local(name_or_path: Location) -> bool:
    """Whether this names something on this machine rather than a repository."""
    return os.path.exists(name_or_path)


def find_file(
    name_or_path: Location,
    filename: str,
    *,
    subfolder: str | None = None,
    options: HubOptions | None = None,
) -> Path:
    """The local path of ``filename`` in a folder or a Hub repository; it is downloaded if it is not in the cache.

    A ``name_or_path`` that is itself a file is returned as it is. Raises ``ModelFilesError`` with what to do.
    """
    options = options or HubOptions()
    inside = "/".join(part for part in (subfolder, filename) if part)
    if os.path.isfile(name_or_path):
        return Path(name_or_path)
    if os.path.isdir(name_or_path):
        path = Path(name_or_path, inside)
        if not os.path.isfile(path):  # also where no file could have such a name
            raise _Absent(f"The folder {os.fspath(name_or_path)!r} has no {inside}{_instead(path)}.")
        check_inside(path, Path(name_or_path))
        return path

    from huggingface_hub import hf_hub_download

    repository = os.fspath(name_or_path)
    with _explained(repository, inside, options.revision):
        return Path(hf_hub_download(repository, inside, **options._arguments()))


def _instead(path: Path) -> str:
    """What stands where a file is missing, as the end of a sentence."""
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent.name!r} in it)"
    present = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    more = ", …" if len(present) > 12 else ""
    return f"; it has {', '.join(present[:12])}{more}" if present else " (it is empty)"


def try_find_file(
    name_or_path: Location, filename: str, *, subfolder: str | None = None, options: HubOptions | None = None
) -> Path | None:
    """As :func:`find_file`, with ``None`` for a file that is not there; other trouble is raised."""
    try:
        return find_file(name_or_path, filename, subfolder=subfolder, options=options)
    except _Absent:
        return None


def snapshot(
    repository: str, allow_patterns: Collection[str] | None = None, options: HubOptions | None = None
) -> Path:
    """The local folder of a repository, with the files that match ``allow_patterns`` downloaded into it."""
    from huggingface_hub import snapshot_download

    options = options or HubOptions()
    patterns = None if allow_patterns is None else sorted(allow_patterns)
    with _explained(repository, "a snapshot", options.revision):
        return Path(snapshot_download(repository, allow_patterns=patterns, **options._arguments()))


def list_files(repository: str, options: HubOptions | None = None) -> tuple[tuple[str, ...], str]:
    """The names of all files of a repository, and the commit that has them; asks the Hub (online only)."""
    from huggingface_hub import HfApi

    options = options or HubOptions()
    if options.local_files_only:
        raise InputError(
            "The files of a repository cannot be listed with local_files_only=True; use snapshot()."
        )
    with _explained(repository, "the list of files", options.revision):
        info = HfApi(library_name="calotype").model_info(
            repository, revision=options.revision, token=options.token
        )
    return tuple(sorted(entry.rfilename for entry in info.siblings or ())), info.sha or ""


def upload_folder(
    folder: Location,
    repo_id: str | None = None,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    create_pr: bool = False,
    path_in_repo: str | None = None,
) -> str:
    """Upload a folder to a Hub repository (by default one of the folder's name), made if it does not exist.

    Returns the address of the commit.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFilesError(f"{folder} is not a folder: there is nothing to upload.")
    api = HfApi(token=token, library_name="calotype")
    name = repo_id or folder.resolve().name
    with _explained(name, "the upload", None):
        name = api.create_repo(name, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            path_in_repo=path_in_repo,
            commit_message=commit_message or "Upload with calotype",
            create_pr=create_pr,
        )
    return str(commit)
