"""The stages of the pocket recipe: VAE, tokenizer, text encoder, latents, UNet. Each leaves files for the next."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from calotype.core.errors import InputError
from calotype.core.files import replacing
from calotype.training.checkpoint import Position
from calotype.training.gradients import precision
from calotype.training.loop import LoopSettings, fit
from calotype.training.pace import Pace
from calotype.training.recipes.pocket.data import (
    LatentBatches,
    LatentSet,
    PictureBatches,
    chunks_of,
    corpus,
    make_latents,
    make_reading,
    render_pool,
)
from calotype.training.recipes.pocket.networks import (
    attention_of,
    autocast_type,
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
    latent_shape,
    save_text_encoder,
)
from calotype.training.recipes.pocket.pictures import PictureSource
from calotype.training.recipes.pocket.reading import (
    CaptionBatches,
    CaptionSet,
    ReadingObjective,
)
from calotype.training.recipes.pocket.run import Run
from calotype.training.recipes.pocket.settings import PROMPTS, PocketSettings
from calotype.training.sheets import write_sheet
from calotype.training.text_to_image import TextToImageObjective, sample_latents
from calotype.training.tokenizer import END, Encoder, train_tokenizer
from calotype.training.vae import AutoencoderObjective, psnr, standardise_latents

_POOL_SHARE = 0.2
"""Of the VAE's time, at most this much goes into rendering its pictures."""


def train_vae(settings: PocketSettings, run: Run) -> None:
    """Stage ``vae``: leaves ``work/vae`` (float16) and in ``out`` the same, a sheet and the log."""
    chosen, device = settings.vae, run.device
    pictures = _pictures(settings, run)
    pool = render_pool(settings, pictures, device, _POOL_SHARE * _seconds(run, "vae"), run.say)
    torch.manual_seed(settings.seed)
    vae = build_vae(settings).to(device)
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)
    run.say(f"VAE: {sum(p.numel() for p in vae.parameters()):,} parameters")
    held_out = chunks_of(settings.data.validation, settings.data.chunk)[0]
    fresh = pictures("validation", *held_out)[:256] * 2 - 1

    def inspect(position: Position) -> Mapping[str, float]:
        shown = fresh[:8]
        decoded = vae.decode(vae.encode(shown).latent_dist.mean).sample
        pairs = torch.stack([shown, decoded], dim=1).flatten(0, 1)
        captions = ["rendered", "decoded"] * len(shown)
        write_sheet(run.out / "vae.png", (pairs + 1) / 2, captions)
        return {"validation_psnr": sum(psnr(vae, part) for part in fresh.split(32)) / len(fresh.split(32))}

    minutes = None if chosen.steps is not None else run.minutes_for("vae")
    loop = LoopSettings(
        pace=Pace(chosen.learning_rate, chosen.steps, minutes, chosen.warmup),
        ema_decay=chosen.ema_decay,
        autocast=autocast_type(settings, device),
        threads=_threads(settings, run),
        compile=run.compile,
        inspect_every=60.0,
    )
    outcome = fit(
        AutoencoderObjective(vae, chosen.sharpness, chosen.kl, chosen.color),
        PictureBatches(pool, settings),
        loop,
        folder=run.work / "vae-training",
        samples_per_batch=chosen.batch,
        identity={"vae": repr(chosen), "images": len(pool), "seed": settings.seed},
        resume=run.resume,
        inspect=inspect,
        say=run.say,
    )
    vae.eval()
    with outcome.ema.applied(), torch.no_grad():
        before = psnr(vae, fresh[:32])
        factor = standardise_latents(vae, fresh.split(64))
        run.say(
            f"latents standardised, scaling factor {factor}, PSNR {before:.2f} then {psnr(vae, fresh[:32]):.2f} dB"
        )
        half = vae.to(torch.float16).to(memory_format=torch.contiguous_format)
        half.save_pretrained(run.work / "vae")
    shutil.copytree(run.work / "vae", run.out / "vae", dirs_exist_ok=True)
    _keep_log(run, "vae")


def make_tokenizer(settings: PocketSettings, run: Run) -> None:
    """Stage ``tokenizer``: leaves ``work/tokenizer``."""
    size = train_tokenizer(
        run.work / "tokenizer", corpus(settings), settings.text.merges, settings.text.length
    )
    run.say(f"tokenizer of {size} tokens")


def tokenizer_of(run: Run) -> Path:
    """``work/tokenizer``; ``InputError`` if its stage has not run."""
    if not (run.work / "tokenizer" / "vocab.json").is_file():
        raise InputError(f"There is no tokenizer in {run.work}: run the stage tokenizer first.")
    return run.work / "tokenizer"


def train_text(settings: PocketSettings, run: Run) -> None:
    """Stage ``text``: leaves ``work/text_encoder``, a ``CLIPTextModel`` that can read, and the log in ``out``."""
    chosen, device, tokenizer = settings.text, run.device, tokenizer_of(run)
    vocabulary = Encoder(tokenizer).ids
    torch.manual_seed(settings.seed + 2)
    text_encoder = build_text_encoder(settings, len(vocabulary))
    objective = ReadingObjective(text_encoder, chosen.hidden, vocabulary[END]).to(device)
    began = time.monotonic()
    data = make_reading(settings, tokenizer, run.workers if chosen.scenes > 10_000 else 0)
    run.say(f"captions of {len(data):,} scenes after {time.monotonic() - began:.0f} s")
    minutes = None if chosen.steps is not None else run.minutes_for("text")
    empty = torch.tensor(Encoder(tokenizer).encode("", chosen.length), dtype=torch.int16, device=device)
    with attention_of(device):
        outcome = fit(
            objective,
            CaptionBatches(
                CaptionSet(data.ids.to(device), data.answers.to(device)),
                empty,
                chosen.batch,
                settings.seed,
                settings.unet.caption_dropout,
            ),
            LoopSettings(
                pace=Pace(chosen.learning_rate, chosen.steps, minutes, chosen.warmup),
                ema_decay=chosen.ema_decay,
                autocast=autocast_type(settings, device),
                threads=_threads(settings, run),
                compile=run.compile,
            ),
            folder=run.work / "text-training",
            samples_per_batch=chosen.batch,
            identity={"text": repr(chosen), "seed": settings.seed},
            resume=run.resume,
            say=run.say,
        )
    with outcome.ema.applied():
        save_text_encoder(objective.text_encoder, run.work / "text_encoder")
    _keep_log(run, "text")


def make_data(settings: PocketSettings, run: Run) -> None:
    """Stage ``latents``: leaves ``work/latents.pt``."""
    vae, tokenizer = load_vae(settings, run), tokenizer_of(run)
    pictures = _pictures(settings, run)
    sets = {}
    for purpose, total in (("validation", settings.data.validation), ("latents", settings.data.scenes)):
        sets[purpose] = make_latents(
            settings, vae, tokenizer, pictures, run.device,
            purpose=purpose, total=total, seconds=_seconds(run, "latents"),
            workers=run.workers if total > 10_000 else 0, say=run.say,
        )  # fmt: skip
    with replacing(run.work / "latents.pt") as temporary:
        torch.save(
            {purpose: (kept.latents.cpu(), kept.ids.cpu()) for purpose, kept in sets.items()}, temporary
        )


def load_vae(settings: PocketSettings, run: Run) -> Any:
    """The VAE of an earlier stage in float32, from ``work/vae``."""
    from calotype import AutoencoderKL

    folder = run.work / "vae"
    if not (folder / "config.json").exists():
        raise InputError(
            f"There is no VAE in {folder}: run the stage vae first, or name its folder with --vae."
        )
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).to(run.device).eval()


def load_data(run: Run) -> dict[str, LatentSet]:
    """``work/latents.pt`` on the device."""
    path = run.work / "latents.pt"
    if not path.exists():
        raise InputError(f"There is no {path}: run the stage latents first.")
    stored = torch.load(path, weights_only=True)
    return {name: LatentSet(a.to(run.device), b.to(run.device)) for name, (a, b) in stored.items()}


def build_objective(settings: PocketSettings, run: Run) -> TextToImageObjective:
    """The UNet, with the random weights of the recipe's seed or those to go on from, and its loss.

    The text encoder that the stage ``text`` left reads for it and stays as it is.
    """
    from transformers import CLIPTextModel

    folder = run.work / "text_encoder"
    if not (folder / "config.json").is_file():
        raise InputError(f"There is no text encoder in {run.work}: run the stage text first.")
    text_encoder = CLIPTextModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    torch.manual_seed(settings.seed + 1)
    unet = build_unet(settings)
    if run.init is not None:
        start_from(run.init, unet)
    return TextToImageObjective(
        unet,
        text_encoder,
        build_scheduler(settings).alphas_cumprod,
        settings.unet.prediction,
        settings.unet.min_snr_gamma,
    ).to(run.device)


def start_from(folder: Path, unet: Any) -> None:
    """Fill the UNet with a checkpoint's weights; ``InputError`` where the sizes differ."""
    from calotype import UNet2DConditionModel

    trained = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    try:
        unet.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        raise InputError(f"The unet in {folder} is not of this preset's sizes: {error}"[:600]) from error


def unet_identity(settings: PocketSettings) -> dict[str, Any]:
    """What a checkpoint of this stage must agree in to be continued."""
    return {"unet": repr(settings.unet), "text": repr(settings.text), "seed": settings.seed}


def train_unet(settings: PocketSettings, run: Run) -> None:
    """Stage ``unet``: leaves ``work/unet-training/training.pt``, and sheets and the log in ``out``."""
    chosen, device = settings.unet, run.device
    objective = build_objective(settings, run)
    data, vae = load_data(run), load_vae(settings, run)
    if device.type == "cuda":
        objective.unet.to(memory_format=torch.channels_last)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in objective.named_children()}
    run.say(f"parameters: {counts}; {len(data['latents']):,} pictures")
    encoder = Encoder(run.work / "tokenizer")

    def ids(texts: tuple[str, ...]) -> torch.Tensor:
        rows = [encoder.encode(text, settings.text.length) for text in texts]
        return torch.tensor(rows, dtype=torch.int16, device=device)

    empty = ids(("",))
    inspection = _Inspection(settings, run, objective, vae, data["validation"], ids(PROMPTS).long(), empty)
    minutes = None if chosen.steps is not None else run.minutes_for("unet")
    with attention_of(device):
        fit(
            objective,
            LatentBatches(data["latents"], empty[0], settings),
            LoopSettings(
                pace=Pace(chosen.learning_rate, chosen.steps, minutes, chosen.warmup),
                ema_decay=chosen.ema_decay,
                autocast=autocast_type(settings, device),
                threads=_threads(settings, run),
                compile=run.compile,
            ),
            folder=run.work / "unet-training",
            samples_per_batch=chosen.batch,
            identity={**unet_identity(settings), "pictures": len(data["latents"])},
            resume=run.resume,
            inspect=inspection,
            say=run.say,
        )
    _keep_log(run, "unet")


class _Inspection:
    """Validation loss on held-out scenes and a sheet of the fixed prompts, at the averaged weights."""

    def __init__(
        self,
        settings: PocketSettings,
        run: Run,
        objective: TextToImageObjective,
        vae: Any,
        validation: LatentSet,
        prompts: torch.Tensor,
        empty: torch.Tensor,
    ) -> None:
        self._settings, self._run, self._objective, self._vae = settings, run, objective, vae
        self._prompts, self._empty = prompts, empty.long()
        self._batches = LatentBatches(validation, empty[0], settings)

    def __call__(self, position: Position) -> Mapping[str, float]:
        device = self._run.device
        losses = []
        with precision(device, autocast_type(self._settings, device)):
            for number in range(max(1, min(4, len(self._batches.data) // self._settings.unet.batch))):
                losses.append(self._objective(self._batches(number))["loss"])
            latents = sample_latents(
                self._objective.unet,
                self._objective.text_encoder,
                build_scheduler(self._settings),
                self._prompts,
                self._empty,
                latent_shape(self._settings),
                steps=self._settings.sampling_steps,
                guidance=self._settings.guidance,
                generator=torch.Generator().manual_seed(self._settings.seed),
            )
        pictures = self._vae.decode(latents.float() / self._vae.config.scaling_factor).sample
        write_sheet(self._run.out / "unet.png", (pictures + 1) / 2, PROMPTS)
        return {"validation_loss": torch.stack(losses).mean().item()}


def _seconds(run: Run, stage: str) -> float:
    """Seconds for a stage; without a limit, as many as it needs."""
    minutes = run.minutes_for(stage)
    return math.inf if minutes is None else 60 * minutes


def _pictures(settings: PocketSettings, run: Run) -> PictureSource:
    folder = run.work / "pictures" if settings.data.keep_pictures else None
    return PictureSource(settings, run.device, run.say, folder)


def _threads(settings: PocketSettings, run: Run) -> int:
    """Parts of a batch side by side; a compiled step has its own threads."""
    return settings.on_cpu.threads if run.device.type == "cpu" and not run.compile else 1


def _keep_log(run: Run, stage: str) -> None:
    shutil.copyfile(run.work / f"{stage}-training" / "log.jsonl", run.out / f"{stage}-log.jsonl")
