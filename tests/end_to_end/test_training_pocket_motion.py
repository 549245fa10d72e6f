"""The recipe of the pocket model's motion from clips to an adapter that both libraries load, at a size of seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import calotype
from calotype.core.errors import CalotypeError, InputError, ModelFilesError
from calotype.pipelines.bundled import BUNDLED, LORA_FILE, locate
from calotype.pipelines.load import load_moving
from calotype.training.__main__ import main
from calotype.training.recipes.base import load_base
from calotype.training.recipes.chunks import ChunkFolder
from calotype.training.recipes.pocket.settings import changed
from calotype.training.recipes.pocket_motion import stages, train_pocket_motion
from calotype.training.recipes.pocket_motion.clips import ClipBatches, ClipSet
from calotype.training.recipes.pocket_motion.networks import ClipObjective
from calotype.training.recipes.pocket_motion.networks import build_unet as build_moving_unet
from calotype.training.recipes.pocket_motion.settings import PRESETS, preset
from tests.tiny_pocket import tiny_pocket

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pocket checkpoint of random weights, with the bundled one's words."""
    return tiny_pocket(tmp_path_factory.mktemp("base"))


def train(out: Path, base: Path, **options: Any) -> None:
    train_pocket_motion(out, preset="tiny", base=base, device="cpu", **options)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(out, work) of a dry run of all stages."""
    folder = tmp_path_factory.mktemp("motion")
    few = ["clips.count=4", "clips.chunk=2", "clips.frames=2", "clips.validation=1"]
    train(folder / "out", base, work=folder / "work", changes=["train.learning_rate=0.05", *few])
    return folder / "out", folder / "work"


def clip(pipe: Any, prompt: str = "a red ball rolling to the right") -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        prompt, num_frames=3, num_inference_steps=2, guidance_scale=4.0, output_type="np",
        generator=torch.Generator().manual_seed(0), height=32, width=32,
    ).frames  # fmt: skip
    return np.asarray(frames)


def test_results_are_an_adapter_a_sheet_and_the_log(trained: tuple[Path, Path]) -> None:
    out, _ = trained
    assert sorted(path.name for path in out.iterdir()) == ["motion-log.jsonl", "motion.png", "pocket-motion"]
    adapter = out / "pocket-motion"
    assert sorted(path.name for path in adapter.iterdir()) == ["README.md", "config.json", WEIGHTS, LORA_FILE]
    card = (adapter / "README.md").read_text(encoding="utf-8")
    assert "| preset | none, settings as below |" in card and '"learning_rate": 0.05' in card
    assert "| clips | 4 rendered, of 2 frames" in card and "| steps | 3 of 2 clips |" in card
    assert "random weights" in card and "nan" not in card
    for name in (WEIGHTS, LORA_FILE):
        tensors = load_file(adapter / name)
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert all(".motion_modules." in name for name in load_file(adapter / WEIGHTS))
    entries = [
        json.loads(line) for line in (out / "motion-log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert any("validation_loss" in entry for entry in entries)


def test_training_moves_the_adapter_and_nothing_else(trained: tuple[Path, Path], base: Path) -> None:
    """Its last layers began as zeros; what is frozen has no gradient."""
    adapter = trained[0] / "pocket-motion"
    moved = {n: t for n, t in load_file(adapter / WEIGHTS).items() if ".proj_out." in n}
    moved |= {n: t for n, t in load_file(adapter / LORA_FILE).items() if ".lora_B." in n}
    assert len(moved) > 8 and all(tensor.abs().max() > 0 for tensor in moved.values())
    unet = build_moving_unet(preset("tiny"), load_base(base, torch.device("cpu")), None)
    learning = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert all(".motion_modules." in name or ".transformer_blocks." in name for name in learning)
    assert not any(
        name.endswith(("attn1.to_q.weight", "norm1.weight")) for name in learning if "motion" not in name
    )


def test_a_new_adapter_changes_little(base: Path) -> None:
    parts = load_base(base, torch.device("cpu"))
    unet = build_moving_unet(preset("tiny"), parts, None).eval()
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, *parts.latent_shape[1:], generator=g)
    context = torch.randn(2, 5, parts.unet.config.cross_attention_dim, generator=g)
    with torch.no_grad():
        ours = unet(x, 500, context).sample
        alone = torch.stack([parts.unet(frame, 500, context).sample for frame in x.unbind(2)], dim=2)
    apart = float((ours - alone).square().mean().sqrt() / alone.std())
    assert 0 < apart < 0.2


class Sees(torch.nn.Module):
    """Keeps what it is given."""

    def forward(self, sample: torch.Tensor, timestep: Any, states: Any, return_dict: bool) -> Any:
        self.sample = sample
        return (torch.zeros_like(sample),)


def test_of_faint_clips_less_is_seen(trained: tuple[Path, Path], base: Path) -> None:
    parts = load_base(base, torch.device("cpu"))
    clips = ClipSet(ChunkFolder(trained[1] / "clips", "clips"), parts.device)
    clips.look()
    faint, clear = (
        ClipBatches(clips, parts, changed(preset("tiny"), [f"train.faint={share}", "train.batch=16"]))(0)
        for share in (1.0, 0.0)
    )
    assert (faint["timesteps"] >= 900).all()
    assert (faint["signal"] < 1).all() and faint["signal"].std() > 0.1
    assert (clear["signal"] == 1).all() and (clear["timesteps"] < 900).any()
    unet = Sees()
    objective = ClipObjective(unet, parts.scheduler)
    objective({**clear, "signal": torch.zeros(16)})
    torch.testing.assert_close(unet.sample, clear["noise"])
    objective(clear)
    assert not torch.allclose(unet.sample, clear["noise"], atol=1e-2)


def test_what_changes_in_faint_clips_counts_by_itself(trained: tuple[Path, Path], base: Path) -> None:
    """A still is wrong by all of it, whatever it shows, and clips that are not faint do not count."""
    parts = load_base(base, torch.device("cpu"))
    clips = ClipSet(ChunkFolder(trained[1] / "clips", "clips"), parts.device)
    clips.look()
    batch = ClipBatches(clips, parts, changed(preset("tiny"), ["train.faint=1.0"]))(0)
    batch["latents"] = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(3))
    batch["signal"] = torch.tensor([0.0, 1.0])
    still = batch["latents"].mean(2, keepdim=True).expand_as(batch["latents"]) + 3

    class Says(torch.nn.Module):
        answer: torch.Tensor

        def forward(self, sample: torch.Tensor, *_: Any, return_dict: bool) -> Any:
            return (-torch.stack([self.answer, torch.full_like(self.answer, 100.0)]),)

    says = Says()
    objective = ClipObjective(says, parts.scheduler, changing=0.5)
    for answer, wrong in ((still[0], 1.0), (batch["latents"][0], 0.0), (-batch["latents"][0], 4.0)):
        says.answer = answer
        told = objective(batch)
        assert float(told["changing"]) == pytest.approx(wrong, abs=1e-5)
        torch.testing.assert_close(told["loss"], told["denoising"] + 0.5 * told["changing"])


def test_motion_is_read_in_the_call_of_its_batch(trained: tuple[Path, Path], base: Path) -> None:
    """Whatever the UNet was asked between two batches, as an inspection does."""
    parts = load_base(base, torch.device("cpu"))
    settings = preset("tiny")
    clips = ClipSet(ChunkFolder(trained[1] / "clips", "clips"), parts.device)
    clips.look()
    batch = ClipBatches(clips, parts, settings)(0)
    unet = build_moving_unet(settings, parts, None)
    objective = ClipObjective(unet, parts.scheduler, following=0.5)
    assert objective.following is not None
    for head in objective.following.heads:
        torch.nn.init.normal_(head.weight)  # as after a step
    first = objective(batch)
    with torch.no_grad():
        unet(batch["latents"][:1], 3, batch["states"][:1])
    again = objective(batch)
    assert torch.equal(first["following"], again["following"])
    torch.testing.assert_close(again["loss"], again["denoising"] + 0.5 * again["following"])
    again["following"].backward()
    inner = [
        p.grad
        for n, p in unet.named_parameters()
        if ".motion_modules." in n and n.endswith("proj_out.weight")
    ]
    assert any(grad is not None and grad.any() for grad in inner)


def test_low_rank_updates_that_an_adapter_lacks_are_new(
    trained: tuple[Path, Path], base: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained[0] / "pocket-motion", tmp_path / "adapter")
    (tmp_path / "adapter" / LORA_FILE).unlink()
    parts = load_base(base, torch.device("cpu"))
    unet = build_moving_unet(preset("tiny"), parts, tmp_path / "adapter")
    ups = [p for n, p in unet.named_parameters() if n.endswith(".up")]
    assert ups and all(p.requires_grad and not p.any() for p in ups)
    stored = load_file(tmp_path / "adapter" / WEIGHTS)
    own = unet.state_dict()
    assert all(torch.equal(own[name], value.float()) for name, value in stored.items())


def test_an_adapter_is_gone_on_from(trained: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    """With hardly a step it is what it was; with a step it is not."""
    first = trained[0] / "pocket-motion"
    shutil.copytree(trained[1] / "clips", tmp_path / "work" / "clips")
    for name, rate in (("same", 1e-9), ("further", 0.05)):
        train(
            tmp_path / name, base, work=tmp_path / "work", init=first, stages=["motion", "export"],
            changes=["train.steps=1", f"train.learning_rate={rate}", "train.warmup=0", "train.ema_decay=0.0"],
        )  # fmt: skip
        second = tmp_path / name / "pocket-motion"
        for file in (WEIGHTS, LORA_FILE):
            before, after = load_file(first / file), load_file(second / file)
            assert before.keys() == after.keys()
            apart = max(float((after[n].float() - t.float()).abs().max()) for n, t in before.items())
            assert (apart < 1e-4) == (name == "same"), (file, apart)
        assert "the weights of an earlier training" in (second / "README.md").read_text(encoding="utf-8")


def test_the_reference_moves_the_same(trained: tuple[Path, Path], base: Path) -> None:
    import diffusers

    adapter = trained[0] / "pocket-motion"
    ours = load_moving(base, adapter, device="cpu")
    assert isinstance(ours, calotype.AnimateDiffPipeline)
    motion = diffusers.MotionAdapter.from_pretrained(adapter)
    theirs = diffusers.AnimateDiffPipeline.from_pretrained(base, motion_adapter=motion)
    plain = clip(theirs)
    theirs.load_lora_weights(adapter, weight_name=LORA_FILE)
    expected = clip(theirs)
    assert expected.shape == (1, 3, 32, 32, 3) and expected.std() > 0.01
    np.testing.assert_allclose(clip(ours), expected, atol=1e-4, rtol=0)
    assert np.abs(plain - expected).max() > 1e-3  # the updates beside the adapter count


def test_the_trained_folder_is_loaded_by_its_path(
    trained: tuple[Path, Path], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained[0] / "pocket-motion"
    monkeypatch.setitem(BUNDLED, "pocket", base)
    expected = clip(load_moving(base, adapter, device="cpu"))
    np.testing.assert_array_equal(clip(calotype.load(adapter, device="cpu")), expected)
    monkeypatch.setitem(BUNDLED, "pocket-motion", adapter)
    np.testing.assert_array_equal(clip(calotype.load("pocket-motion", device="cpu")), expected)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}', encoding="utf-8")
    with pytest.raises(ModelFilesError, match="no motion adapter in"):
        load_moving("pocket", tmp_path)


def test_an_adapter_for_another_checkpoint_is_refused(trained: tuple[Path, Path]) -> None:
    with pytest.raises(CalotypeError):
        load_moving("pocket", trained[0] / "pocket-motion", device="cpu")


def test_without_the_adapter_the_name_is_answered_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(BUNDLED, "pocket-motion", tmp_path / "none")
    for ask in (calotype.load, locate):
        with pytest.raises(
            ModelFilesError, match="has no pocket-motion: `calotype train pocket-motion --out DIR`"
        ):
            ask("pocket-motion")
    assert Path(locate("pocket")).is_dir()


def test_a_folder_that_is_too_large_is_refused(
    trained: tuple[Path, Path], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="more than 1,000: make it smaller"):
        train(trained[0], base, work=trained[1], stages=["export"])


def test_the_full_preset_is_within_the_limit() -> None:
    """The adapter of the bundled checkpoint in float16."""
    from calotype.training.recipes.pocket_motion.networks import build_adapter

    unet = calotype.UNet2DConditionModel.from_config(
        calotype.UNet2DConditionModel.load_config(BUNDLED["pocket"] / "unet")
    )
    adapter = build_adapter(PRESETS["full"], type("Base", (), {"unet": unet})())
    assert 1e6 < 2 * sum(p.numel() for p in adapter.parameters()) < 0.8 * stages.MAX_BYTES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "cpu"], "no preset 'cpu' of pocket-motion; there are full, tiny"),
        (["--stage", "vae"], "no stage vae; there are clips, motion, export"),
        (["--base", "nowhere"], "no checkpoint in nowhere"),
        (["--vae", "there", "--resume"], "The recipe pocket-motion has no --vae and no --resume."),
        (["--stage", "motion", "--init", "nowhere"], "no motion adapter in nowhere"),
        (["--stage", "motion"], "run the stage clips first"),
        (["--stage", "export"], "run the stage motion first"),
        (["--set", "unet.depth=3"], "no setting 'unet.depth=3'"),
    ],
)
def test_mistakes_are_one_line_and_a_code(
    words: list[str], message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--preset", "tiny", "--base", str(base), "--device", "cpu"]
    code = main(["pocket-motion", "--out", str(tmp_path), "--work", str(tmp_path / "work"), *usual, *words])
    *_, error = capsys.readouterr().err.splitlines()  # after the bars of what was loaded
    assert code == 1
    assert error.startswith("error: ") and message in error


def test_the_other_recipe_takes_no_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pocket", "--out", str(tmp_path), "--preset", "tiny", "--base", "here"]) == 1
    assert "The recipe pocket has no --base." in capsys.readouterr().err


@pytest.mark.skipif(not BUNDLED["pocket-motion"].is_dir(), reason="the moving pocket model is not installed")
def test_the_bundled_adapter_moves_things_as_asked_and_in_the_reference_too(tmp_path: Path) -> None:
    import diffusers

    from calotype.pocket.classifier import load_classifier, read_pictures
    from calotype.pocket.motion import FRAMES
    from calotype.pocket.motion_judging import MotionPrompt, judge_motion

    asked = [
        MotionPrompt("a red ball rolling to the right on grass", "right", "sphere", "red"),
        MotionPrompt("a blue cube sliding to the left on snow", "left", "cube", "blue"),
    ]
    pipe = calotype.load("pocket-motion", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    options = {"num_frames": FRAMES, "num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "pt"}
    frames = pipe(
        [prompt.text for prompt in asked],
        generator=[torch.Generator().manual_seed(s) for s in (0, 1)],
        **options,
    ).frames
    classifier = load_classifier(
        Path(__file__).parents[2] / "benchmarks" / "pocket_classifier.safetensors", "cpu"
    )
    verdicts = judge_motion(asked, read_pictures(classifier, frames.flatten(0, 1)), FRAMES)
    assert all(verdict.direction and verdict.color for verdict in verdicts), verdicts
    # as a whole pipeline, because the reference takes no embedding of time as narrow as the pocket model's
    pipe.save_pretrained(tmp_path)
    theirs = diffusers.AnimateDiffPipeline.from_pretrained(tmp_path)
    few = {**options, "num_inference_steps": 2, "num_frames": 2, "output_type": "np"}
    clips = [
        np.asarray(p(asked[0].text, generator=torch.Generator().manual_seed(0), **few).frames)
        for p in (pipe, theirs)
    ]
    np.testing.assert_allclose(clips[0], clips[1], atol=1e-4, rtol=0)
