"""Results that are not numbers, calls and saves that are stopped, machines without a network: what must happen then."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import calotype
from calotype.core.errors import InputError
from calotype.diffusion import watch
from calotype.diffusion.images import NonFiniteError
from tests.faults.fault import contents
from tests.tiny import stable_diffusion_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stable_diffusion_folder(tmp_path_factory.mktemp("results") / "sound")


@pytest.fixture
def pipe(folder: Path) -> Any:
    return quiet(calotype.StableDiffusionPipeline.from_pretrained(folder))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, **arguments: Any) -> torch.Tensor:
    usual = {"prompt": "a red ball", "num_inference_steps": 4, "output_type": "pt"}
    return pipe(**{**usual, "generator": torch.Generator().manual_seed(0), **arguments}).images


# -- results ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_name_the_step(pipe: Any, value: float) -> None:
    pipe.scheduler = calotype.DDIMScheduler.from_config(pipe.scheduler.config)

    def poison(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.full_like(tensors["latents"], value)} if index == 1 else {}

    with pytest.raises(NonFiniteError, match=r"since step 3 of 4 \(timestep 251\), in float32: load"):
        run(pipe, callback_on_step_end=poison)


def test_where_the_host_runs_ahead_the_step_is_named_though_decoding_has_begun(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def poison(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.full_like(tensors["latents"], float("nan"))} if index == 1 else {}

    def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        order.append("decode")
        raise RuntimeError("cannot decode this")

    check = watch.Watch.check
    monkeypatch.setattr(watch, "is_ahead", lambda device: True)
    monkeypatch.setattr(watch.Watch, "check", lambda self: (order.append("check"), check(self)))
    monkeypatch.setattr(type(pipe.vae), "decode", decode)
    with pytest.raises(NonFiniteError, match="since step 3 of 5"):
        run(pipe, callback_on_step_end=poison)
    assert order == ["check", "decode", "check"]  # before the run, there is nothing to wait for
    with pytest.raises(NonFiniteError, match="since step 3 of 5"):
        run(pipe, callback_on_step_end=poison, output_type="latent")
    with pytest.raises(RuntimeError, match="cannot decode"):
        run(pipe)


def test_a_decoder_that_gives_no_numbers_is_named(pipe: Any) -> None:
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="decoded pictures hold NaN"):
        run(pipe)


def test_a_decoder_that_overflows_in_half_precision_decodes_in_float32(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def loud(dtype: torch.dtype) -> Any:
        pipe = quiet(calotype.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype))
        with torch.no_grad():  # values beyond 65504 inside, which the norm behind them takes back
            pipe.vae.decoder.conv_in.weight *= 3e4
            pipe.vae.decoder.conv_in.bias *= 3e4
        pipe.vae.register_to_config(force_upcast=False)
        return pipe

    latents = run(calotype.StableDiffusionPipeline.from_pretrained(folder), output_type="latent") * 50
    half, single = loud(torch.float16), loud(torch.float32)
    assert not torch.isfinite(half.vae.decode(latents.half()).sample).all()
    keep = {
        "latents": latents,
        "num_inference_steps": 1,
        "callback_on_step_end": lambda *a: {"latents": latents},
    }
    expected = run(single, **keep)
    keep["callback_on_step_end"] = lambda *a: {"latents": latents.half()}
    image = run(half, **{**keep, "latents": latents.half()})
    assert torch.isfinite(image).all()
    assert (image - expected).abs().max() < 0.02
    assert half.vae.dtype == torch.float16
    (said,) = [message for message in caplog.messages if "overflowed" in message]
    assert said.startswith(
        "The decoded pictures overflowed in half precision and are decoded again in float32;"
    )


# -- stopping --------------------------------------------------------------------------------------------------


def test_another_thread_ends_a_call_within_one_step(pipe: Any) -> None:
    started, seen = threading.Event(), []

    def slow(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        started.set()
        time.sleep(0.02)
        return {}

    call = threading.Thread(
        target=run, args=(pipe,), kwargs={"num_inference_steps": 500, "callback_on_step_end": slow}
    )
    call.start()
    assert started.wait(30)
    before = len(seen)
    pipe._interrupt = True
    call.join(30)
    assert not call.is_alive()
    assert len(seen) <= before + 2
    assert not pipe.interrupt


def test_an_error_in_a_callback_leaves_the_pipeline_usable(pipe: Any) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    expected = run(pipe)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, callback_on_step_end=fail)
    assert torch.equal(run(pipe), expected)


SAVE = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have begun without it
import calotype, safetensors.torch
pipe = calotype.StableDiffusionPipeline.from_pretrained(sys.argv[1])
original = safetensors.torch.save_file
def interrupted(tensors, path, **options):
    original(tensors, path, **options)
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)
    os.kill(os.getpid(), signal.SIGINT)
    import time; time.sleep(10)
safetensors.torch.save_file = interrupted
pipe.unet.save_pretrained(sys.argv[2])
"""


def test_ctrl_c_while_saving_leaves_no_part_of_a_file(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "unet"
    target.mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (target / name).write_bytes((folder / "unet" / name).read_bytes())
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SAVE, folder, target], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGINT or "KeyboardInterrupt" in done.stderr, done.stderr
    assert contents(tmp_path) == before


def test_a_full_disk_leaves_the_old_checkpoint(
    pipe: Any, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    pipe.save_pretrained(tmp_path / "saved")
    before = contents(tmp_path)
    import safetensors.torch

    def full(tensors: Any, path: Any, **options: Any) -> None:
        Path(path).write_bytes(b"half of a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        pipe.unet.save_pretrained(tmp_path / "saved" / "unet")
    assert contents(tmp_path) == before


# -- memory ----------------------------------------------------------------------------------------------------


def test_unload_gives_every_model_back(folder: Path) -> None:
    pipe = quiet(calotype.StableDiffusionPipeline.from_pretrained(folder))
    models = [weakref.ref(part) for part in (pipe.unet, pipe.vae, pipe.text_encoder)]
    run(pipe)
    pipe.unload()
    assert [model() for model in models] == [None] * 3
    with pytest.raises(InputError, match=r"was given back by unload\(\); load the pipeline again"):
        run(pipe)


def test_unload_leaves_what_another_pipeline_has(folder: Path) -> None:
    pipe = quiet(calotype.StableDiffusionPipeline.from_pretrained(folder))
    other = quiet(calotype.StableDiffusionImg2ImgPipeline.from_pipe(pipe))
    pipe.unload()
    image = run(other, image=torch.full((1, 3, 64, 64), 0.5))
    assert torch.isfinite(image).all()


def test_unload_waits_for_no_call_but_refuses(pipe: Any) -> None:
    def unload(running: Any, *_: Any) -> dict[str, Any]:
        pipe.unload()
        return {}

    with pytest.raises(InputError, match="is running and cannot be unloaded"):
        run(pipe, callback_on_step_end=unload)


def test_a_deleted_pipeline_frees_its_models(folder: Path) -> None:
    pipe = quiet(calotype.load(folder, device="cpu"))
    run(pipe)
    models = [weakref.ref(part) for part in (pipe.unet, pipe.vae, pipe.text_encoder)]
    del pipe
    gc.collect()
    assert [model() for model in models] == [None] * 3


# -- without a network -----------------------------------------------------------------------------------------

NO_SOCKET = """
import socket, sys
def refuse(*_, **__):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import calotype
pipe = calotype.load(sys.argv[1], device="cpu")
pipe.set_progress_bar_config(disable=True)
pipe("a red ball", num_inference_steps=1)
try:
    calotype.load("owner/model", device="cpu")
except OSError as error:
    print(error)
"""


def test_offline_opens_no_socket(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", NO_SOCKET, folder],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "model_index.json of 'owner/model' is not in the local cache, and HF_HUB_OFFLINE is set"
        in done.stdout
    )


def cached(cache: Path, folder: Path) -> Path:
    """The checkpoint as the Hub's cache keeps it: links to a store of contents."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = cache / "models--owner--model"
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob = home / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(path.read_bytes())
        link = home / "snapshots" / commit / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    return cache


def test_a_cache_that_cannot_be_written_serves(folder: Path, tmp_path: Path) -> None:
    cache = cached(tmp_path / "cache", folder)
    before = contents(cache)
    everything = [cache, *cache.rglob("*")]
    for path in everything:
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        pipe = quiet(calotype.load("owner/model", device="cpu", cache_dir=cache, local_files_only=True))
        assert torch.isfinite(run(pipe, num_inference_steps=1)).all()
    finally:
        for path in everything:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
    assert contents(cache) == before  # who may write anything, as root, wrote nothing either
