"""Finding files: local folders, and repositories behind a server that answers as the Hub does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from calotype import AutoencoderTiny
from calotype.core.errors import ModelFilesError
from calotype.core.hub import HubOptions, commit_of, find_file, upload_folder
from tests.unit.hub_server import COMMIT, hub


def test_options_are_taken_out_of_keyword_arguments() -> None:
    kwargs = {"revision": "fp16", "token": "x", "local_files_only": True, "depth": 3}
    options = HubOptions.take(kwargs)
    assert options == HubOptions(revision="fp16", token="x", local_files_only=True)
    assert kwargs == {"depth": 3}
    assert options.at(None) is options
    assert options.at(COMMIT).revision == COMMIT


def test_local_folder_subfolder_and_file(tmp_path: Path) -> None:
    path = tmp_path / "unet" / "config.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert find_file(tmp_path, "config.json", subfolder="unet") == path
    assert find_file(str(tmp_path / "unet"), "config.json") == path
    assert find_file(path, "anything.json") == path


def test_missing_local_files_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"has no config\.json \(it is empty\)"):
        find_file(tmp_path, "config.json")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ModelFilesError, match=r"has no config\.json; it has model_index\.json"):
        find_file(tmp_path, "config.json")
    with pytest.raises(ModelFilesError, match="there is no folder 'unet' in it"):
        find_file(tmp_path, "config.json", subfolder="unet")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a b/c", "x/y/z"])
def test_what_is_neither_a_folder_nor_a_repository(name: str) -> None:
    with pytest.raises(ModelFilesError, match="neither an existing folder nor the name of a Hub repository"):
        find_file(name, "config.json")


def test_offline(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="not in the local cache, and HF_HUB_OFFLINE is set"):
        find_file("owner/model", "config.json", options=HubOptions(cache_dir=tmp_path))


def test_commit_of() -> None:
    assert commit_of(f"/cache/models--a--b/snapshots/{COMMIT}/unet/config.json") == COMMIT
    assert commit_of("/models/snapshots/today/config.json") is None
    assert commit_of("/models/unet/config.json") is None


def test_uploading_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match="is not a folder"):
        upload_folder(tmp_path / "none")


class _Recorded:
    """Stands in for huggingface_hub's client: keeps what it is asked to do."""

    calls: ClassVar[list[tuple[str, dict]]] = []

    def __init__(self, **kwargs) -> None:
        self.calls.append(("client", kwargs))

    def create_repo(self, name: str, **kwargs):
        self.calls.append(("create", {"name": name, **kwargs}))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, folder_path: Path, **kwargs) -> str:
        names = sorted(path.name for path in Path(folder_path).iterdir())
        self.calls.append(("upload", {"names": names, **kwargs}))
        return "https://hub/commit"


def test_uploading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi", _Recorded)
    monkeypatch.setattr(_Recorded, "calls", [])
    model = AutoencoderTiny(
        encoder_block_out_channels=(4,),
        decoder_block_out_channels=(4,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    )
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    model.save_pretrained(tmp_path / "taesd", push_to_hub=True, token="t", private=True)
    assert (
        model.push_to_hub("other", variant="fp16", subfolder="vae", commit_message="Add")
        == "https://hub/commit"
    )
    done = [values for kind, values in _Recorded.calls if kind != "client"]
    common = {"create_pr": False}
    assert done == [
        {"name": "taesd", "private": True, "exist_ok": True},
        {
            "names": files,
            "repo_id": "me/taesd",
            "path_in_repo": None,
            "commit_message": "Upload with calotype",
            **common,
        },
        {"name": "other", "private": None, "exist_ok": True},
        {
            "names": [files[0], "diffusion_pytorch_model.fp16.safetensors"],
            "repo_id": "me/other",
            "path_in_repo": "vae",
            "commit_message": "Add",
            **common,
        },
    ]
    assert _Recorded.calls[0] == ("client", {"token": "t", "library_name": "calotype"})


# -- against a server ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, list[str]]]:
    with hub() as running:
        yield running


def _run(server: tuple[str, list[str]], cache: Path, code: str, offline: bool = False) -> list[str]:
    """The lines that ``code`` prints in a process that takes the server for the Hub."""
    setting = {
        "HF_ENDPOINT": server[0],
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": "/usr/bin:/bin",
    }
    prelude = """
from pathlib import Path
from calotype.core.hub import *
from calotype.core.errors import ModelFilesError
def say(function, *args, **kwargs):
    try:
        print(function(*args, **kwargs))
    except ModelFilesError as error:
        print("ModelFilesError:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], env=setting, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_downloading_then_offline(server: tuple[str, list[str]], tmp_path: Path) -> None:
    code = "say(find_file, 'owner/model', 'config.json', subfolder='unet')"
    (path,) = _run(server, tmp_path, code)
    assert Path(path).read_bytes() == b"{}"
    assert commit_of(path) == COMMIT
    asked = len(server[1])
    assert _run(server, tmp_path, code, offline=True) == [path]
    assert _run(server, tmp_path, code.replace(")", ", options=HubOptions(local_files_only=True))")) == [path]
    assert len(server[1]) == asked
    missing, absent = _run(
        server,
        tmp_path,
        "say(find_file, 'owner/model', 'config.json', options=HubOptions(local_files_only=True))\n"
        "print(try_find_file('owner/model', 'config.json', options=HubOptions(local_files_only=True)))",
    )
    assert "`local_files_only=True` forbids downloading" in missing
    assert absent == "None"


def test_errors_say_what_to_do(server: tuple[str, list[str]], tmp_path: Path) -> None:
    lines = _run(
        server,
        tmp_path,
        """
say(find_file, "owner/gated", "config.json")
say(find_file, "owner/none", "config.json")
say(find_file, "owner/model", "config.json", options=HubOptions(revision="v9"))
say(find_file, "owner/model", "nothing.json")
print(try_find_file("owner/model", "nothing.json"))
""",
    )
    assert "'owner/gated' is gated" in lines[0]
    assert "`hf auth login`" in lines[0]
    assert "no folder 'owner/none' here, and the Hub has no repository of this name" in lines[1]
    assert "'owner/model' has no revision 'v9'" in lines[2]
    assert lines[3] == "ModelFilesError: The repository 'owner/model' has no nothing.json."
    assert lines[4] == "None"


def test_an_unreachable_hub(tmp_path: Path) -> None:
    code = "import time\ntime.sleep = lambda seconds: None  # between the attempts of huggingface_hub\n"
    code += "say(find_file, 'owner/model', 'config.json')"
    (line,) = _run(("http://127.0.0.1:9", []), tmp_path, code)
    assert "the Hub cannot be reached: check the connection" in line


def test_weights_of_a_repository(server: tuple[str, list[str]], tmp_path: Path) -> None:
    found, half, pickled, none = _run(
        server,
        tmp_path,
        """
from calotype.core.weights import find_weights
say(lambda: find_weights("owner/model", subfolder="unet").paths[0].name)
say(lambda: find_weights("owner/model", subfolder="unet", variant="fp16"))
say(lambda: find_weights("owner/model", subfolder="unet", use_safetensors=False).paths[0].name)
say(lambda: find_weights("owner/model", subfolder="vae"))
""",
    )
    assert found == "diffusion_pytorch_model.safetensors"
    assert "'owner/model' has no unet/diffusion_pytorch_model.fp16.safetensors" in half
    assert pickled == "diffusion_pytorch_model.bin"
    assert "'owner/model' has no vae/diffusion_pytorch_model.safetensors" in none


def test_snapshot_takes_only_what_is_asked_for(server: tuple[str, list[str]], tmp_path: Path) -> None:
    names, listing = _run(
        server,
        tmp_path,
        """
folder = snapshot("owner/model", ["config.json", "unet/*.safetensors"])
print(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))
say(list_files, "owner/model")
""",
    )
    assert names == "['config.json', 'unet/diffusion_pytorch_model.safetensors']"
    assert "unet/config.json" in listing
    assert COMMIT in listing
