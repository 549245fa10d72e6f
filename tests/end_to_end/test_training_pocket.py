"""The pocket recipe from rendering to a pipeline folder, at a size that a CPU does in seconds."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calotype.core.errors import InputError
from calotype.training.__main__ import main
from calotype.training.recipes.pocket import train_pocket
from calotype.training.recipes.pocket.data import (
    LatentBatches,
    LatentSet,
    chunk_captions,
    chunk_ids,
)
from calotype.training.recipes.pocket.networks import build_text_encoder, build_unet, build_vae
from calotype.training.recipes.pocket.pictures import PictureSource, chunk_moving, chunk_scenes
from calotype.training.recipes.pocket.settings import PRESETS, PROMPTS, changed, preset
from calotype.training.tokenizer import Encoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(out, work) of a dry run of all stages, its VAE carried over by folder as between two machines."""
    base = tmp_path_factory.mktemp("pocket")
    train_pocket(base / "first", stages=["vae"], preset="tiny", work=base / "elsewhere", device="cpu")
    train_pocket(
        base / "out", stages=["tokenizer", "text", "latents", "unet", "export"], preset="tiny", work=base / "work",
        vae=base / "first" / "vae", device="cpu",
    )  # fmt: skip
    return base / "out", base / "work"


def test_results_are_few_and_the_archives_hold_the_pipeline(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out, work = trained
    names = sorted(path.name for path in out.iterdir())
    assert names == ["pocket-1.tar", "samples.png", "text-log.jsonl", "unet-log.jsonl", "unet.png"]
    for archive in out.glob("*.tar"):
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path)  # of our own making; Python 3.11.3 and before have no filter
    packed = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    written = {
        path.relative_to(work): path.read_bytes() for path in (work / "pocket").rglob("*") if path.is_file()
    }
    assert packed == written
    assert "seed | 20260" in (work / "pocket" / "README.md").read_text(encoding="utf-8")


def test_the_exported_pipeline_gives_the_reference_s_pictures(trained: tuple[Path, Path]) -> None:
    import diffusers

    import calotype

    folder = trained[1] / "pocket"
    pictures = []
    for library in (calotype, diffusers):
        pipe = library.StableDiffusionPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        result = pipe(
            list(PROMPTS[:2]), negative_prompt=["night", ""], num_inference_steps=4, guidance_scale=4.0,
            generator=torch.Generator().manual_seed(0), output_type="np",
        )  # fmt: skip
        pictures.append(result.images)
    assert pictures[0].shape == (2, 32, 32, 3)
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-4
    assert pictures[0].std() > 0.01


def test_weights_are_half_precision_and_under_names_that_every_transformers_reads(
    trained: tuple[Path, Path],
) -> None:
    from safetensors import safe_open

    for part in ("unet", "vae", "text_encoder"):
        (path,) = (trained[1] / "pocket" / part).glob("*.safetensors")
        with safe_open(path, framework="pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118
            if part == "text_encoder":
                assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118


def test_a_run_that_was_cut_off_goes_on(trained: tuple[Path, Path], tmp_path: Path) -> None:
    import shutil

    work = tmp_path / "work"
    shutil.copytree(trained[1], work)
    (work / "unet-training" / "log.jsonl").unlink()
    with pytest.raises(InputError, match="other settings"):
        train_pocket(
            tmp_path / "out", stages=["unet"], preset="tiny", work=work, device="cpu", resume=True,
            changes=["unet.batch=4"],
        )  # fmt: skip
    # the run is over, so that nothing but the checkpoint is read; the export is the same again
    before = (work / "pocket" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train_pocket(tmp_path / "out", stages=["export"], preset="tiny", work=work, device="cpu")
    assert (work / "pocket" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_captions_belong_to_the_scenes_and_ids_to_the_captions(trained: tuple[Path, Path]) -> None:
    from calotype.pocket.vocabulary import HELD_OUT

    settings, tokenizer = preset("tiny"), trained[1] / "tokenizer"
    encoder = Encoder(tokenizer)
    texts = chunk_captions(settings, "latents", 0, 16)
    ids = chunk_ids(settings, tokenizer, "latents", 0, 16)
    assert ids.shape == (16, settings.data.captions, 77)
    assert ids.tolist() == [[encoder.encode(text) for text in row] for row in texts]
    assert ids.max() < len(encoder.ids)

    def pairs(purpose: str) -> set[tuple[str, str]]:
        records = chunk_scenes(settings, purpose, 0, 64).records()
        return {(record.objects[0].shape, record.objects[0].color) for record in records}

    assert not pairs("latents") & HELD_OUT
    assert pairs("validation") <= HELD_OUT


def test_batches_are_a_function_of_their_number_and_drop_captions() -> None:
    settings = changed(preset("tiny"), ["unet.batch=400", "unet.caption_dropout=0.25"])
    data = LatentSet(
        torch.arange(10.0).half()[:, None, None, None].expand(10, 4, 8, 8), torch.ones(10, 2, 77).short()
    )
    batches = LatentBatches(data, torch.zeros(77).short(), settings)
    first, again, other = batches(3), batches(3), batches(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["noise"], other["noise"])
    dropped = (first["input_ids"] == 0).all(1).float().mean().item()
    assert 0.15 < dropped < 0.35
    assert first["latents"].dtype == torch.float32


def test_a_share_of_the_chunks_is_of_moving_scenes_and_held_out_pairs_are_in_none() -> None:
    from calotype.pocket.scene import pairs_of

    settings = changed(preset("tiny"), ["data.moving=0.25"])
    moving = [chunk_moving(settings, "latents", chunk, 4) is not None for chunk in range(8)]
    assert moving == [False, False, False, True] * 2
    assert all(chunk_moving(settings, purpose, 3, 4) is None for purpose in ("images", "validation"))
    seen = {tuple(pair) for pair in pairs_of("train")[0].tolist()}
    scenes = chunk_scenes(settings, "latents", 3, 200)
    pairs = torch.stack((scenes.shape, scenes.color), dim=-1)[scenes.present]
    assert {tuple(pair) for pair in pairs.tolist()} <= seen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "huge"], "no preset 'huge'; there are full, cpu, tiny"),
        (["--preset", "tiny", "--stage", "vea"], "no stage vea"),
        (["--preset", "tiny", "--stage", "text"], "run the stage tokenizer first"),
        (["--preset", "tiny", "--stage", "unet"], "run the stage text first"),
        (["--preset", "tiny", "--stage", "latents"], "run the stage vae first"),
        (["--preset", "tiny", "--stage", "export"], "run the stage unet first"),
        (["--preset", "tiny", "--vae", "nowhere"], "no VAE in nowhere"),
        (["--preset", "tiny", "--max-minutes", "-1"], "must be positive, not -1.0"),
        (["--preset", "tiny", "--device", "gpu0"], "no device 'gpu0'"),
        (["--preset", "tiny", "--set", "unet.depth=3"], "no setting 'unet.depth=3'"),
        (["--preset", "tiny", "--set", "unet.batch=many"], "unet.batch cannot be 'many'; at present it is 8"),
        (
            ["--preset", "full", "--stage", "vae", "--set", "vae.images=1", "--set", "pixels=16"],
            "--max-minutes",
        ),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["pocket", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *words])
    error = capsys.readouterr().err
    assert code == 1
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_kept_pictures_are_read_again_and_mismatched_ones_refused(tmp_path: Path) -> None:
    settings = changed(preset("tiny"), ["data.keep_pictures=true", "pixels=16"])

    def source() -> PictureSource:
        return PictureSource(settings, torch.device("cpu"), print, tmp_path)

    rendered = source()("latents", 1, 3)
    assert rendered.shape == (3, 3, 16, 16) and [file.name for file in tmp_path.iterdir()] == ["latents-1.pt"]
    stored = torch.load(tmp_path / "latents-1.pt", weights_only=True)
    torch.testing.assert_close(stored.float() / 255, rendered, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.save(255 - stored, tmp_path / "latents-1.pt")
    torch.testing.assert_close(source()("latents", 1, 3), 1 - stored.float() / 255)
    with pytest.raises(InputError, match=r"3 pictures of other settings, not 4"):
        source()("latents", 1, 4)


def test_the_least_detail_leaves_out_terse_captions() -> None:
    def mean_length(least: float) -> float:
        settings = changed(preset("tiny"), [f"data.least_detail={least}"])
        texts = [text for row in chunk_captions(settings, "latents", 0, 200) for text in row]
        return sum(map(len, texts)) / len(texts)

    assert mean_length(0.0) + 5 < mean_length(0.8)


def test_every_preset_makes_networks_within_the_budget_of_parameters() -> None:
    for name in PRESETS:
        settings = preset(name)
        parts = (build_vae(settings), build_unet(settings), build_text_encoder(settings, 1_000))
        assert sum(p.numel() for part in parts for p in part.parameters()) < 9_900_000, name


def test_the_log_has_numbers(trained: tuple[Path, Path]) -> None:
    entries = [
        json.loads(line) for line in (trained[0] / "unet-log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert any("validation_loss" in entry for entry in entries)
    assert all(np.isfinite(list(entry.values())).all() for entry in entries)


def test_a_checkpoint_can_be_gone_on_from(trained: tuple[Path, Path], tmp_path: Path) -> None:
    first = trained[1] / "pocket"
    train_pocket(
        tmp_path / "out", stages=["latents", "unet", "export"], preset="tiny", work=tmp_path / "work",
        init=first, device="cpu", changes=["unet.steps=1", "unet.learning_rate=1e-9"],
    )  # fmt: skip
    second = tmp_path / "work" / "pocket"
    assert (second / "tokenizer" / "vocab.json").read_bytes() == (
        first / "tokenizer" / "vocab.json"
    ).read_bytes()
    for file in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        before, after = (load_file(folder / file) for folder in (first, second))
        assert before.keys() == after.keys()
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, atol=1e-4, rtol=1e-2)
    assert "begun with | the weights of an earlier training" in (second / "README.md").read_text(
        encoding="utf-8"
    )


def test_sizes_of_another_preset_and_folders_without_a_checkpoint_are_refused(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    def go_on(init: Path, **options: Any) -> None:
        train_pocket(
            tmp_path / "out", stages=["latents", "unet"], preset="tiny", work=tmp_path / "work", init=init,
            device="cpu", **options,
        )  # fmt: skip

    with pytest.raises(InputError, match="no checkpoint in"):
        go_on(tmp_path)
    with pytest.raises(InputError, match="not of this preset's sizes"):
        go_on(trained[1] / "pocket", changes=["unet.time_width=32"])
