"""A folder with Kandinsky 2.0 as it was published: ``Kandinsky-2-0.pt`` and its like for inpainting, ``vae.ckpt``,
``text_encoder1/`` (mCLIP) and ``text_encoder2/`` (mT5), the latter with their tokenizers.

The pickles are read only when asked; a safetensors file of the same keys in the place of one is read without asking.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from calotype.core import weights
from calotype.core.config import init_parameters, read_json
from calotype.core.errors import InputError, ModelFilesError
from calotype.core.files import check_inside, check_links
from calotype.core.tensor_files import tensor_infos
from calotype.single_file.guided import fill, guided_unet_config
from calotype.single_file.keys import unet_names
from calotype.single_file.models import read_model
from calotype.single_file.recognise import Infos, prefix_of, vae_config

if TYPE_CHECKING:
    from calotype.models.kandinsky_v20_text_proj import KandinskyV20TextProjModel
    from calotype.models.unet_2d_condition import UNet2DConditionModel
    from calotype.pipelines.components import Loading
    from calotype.pipelines.pipeline import DiffusionPipeline

TEXT, INPAINTING = "Kandinsky-2-0", "Kandinsky-2-0-inpainting"
"""The names of the denoisers' files, without their endings."""

CLASSES = {TEXT: "KandinskyV20Pipeline", INPAINTING: "KandinskyV20InpaintPipeline"}
"""Denoiser -> the class of a folder that has it; one that has both is the first's."""

SCALE, SIDE = 0.0512, 512
"""What latents are multiplied by, and the side of the pictures: neither is in the files."""


def published_class(place: str | os.PathLike[str]) -> str | None:
    """The pipeline class of a folder in this layout, None for anything else."""
    folder = Path(place)
    if not folder.is_dir() or (folder / "model_index.json").is_file():
        return None
    present = {path.stem for path in folder.iterdir() if path.suffix in (".pt", ".safetensors")}
    return next((name for stem, name in CLASSES.items() if stem in present), None)


def read_published(
    cls: type[DiffusionPipeline], folder: Path, given: dict[str, Any], loading: Loading
) -> DiffusionPipeline:
    """The pipeline in a folder in this layout; components that are ``given`` take the place of the files'.

    ``cls`` is a class of this family, or the base of all, which chooses. An object for all tasks has both denoisers,
    any other the one that it is for. Raises ``ModelFilesError`` for files that are missing or damaged and for pickles
    that may not be read.
    """
    from calotype.pipelines.components import public_class
    from calotype.pipelines.pipeline import DiffusionPipeline
    from calotype.pipelines.versatile import Versatile

    class_name = published_class(folder)
    assert class_name is not None
    usual: Any = public_class(class_name)
    chosen: Any = usual if cls is DiffusionPipeline else cls
    if getattr(chosen, "family", None) is not usual.family:
        raise InputError(f"{folder} holds Kandinsky 2.0, not a {chosen.__name__}; load it with {class_name}.")
    if loading.variant is not None:
        raise InputError(f"{folder} is in the layout as published, which has no variants; leave variant out.")
    parameters = init_parameters(chosen)
    if unknown := [name for name in given if name not in parameters]:
        raise InputError(f"{chosen.__name__} has no component {', '.join(unknown)}.")

    reading = _Reading(folder, loading)
    inpaints = bool(chosen.prefix)
    readers: dict[str, Callable[[], Any]] = {
        "tokenizer": lambda: reading.tokenizer("XLMRobertaTokenizer", "text_encoder1"),
        "tokenizer_2": lambda: reading.tokenizer("T5Tokenizer", "text_encoder2"),
        "scheduler": _scheduler,
        "vae": reading.vae,
        "text_encoder": reading.text_encoder,
        "text_encoder_2": reading.text_encoder_2,
    }
    values: dict[str, Any] = dict.fromkeys(parameters) | {
        name: read() for name, read in readers.items() if name not in given
    }
    wanted = {"": INPAINTING if inpaints else TEXT}
    if issubclass(chosen, Versatile) and not inpaints and reading.has(INPAINTING):
        wanted["inpaint_"] = INPAINTING
    for prefix, stem in wanted.items():
        names = f"{prefix}unet", f"{prefix}text_proj"
        if not set(names) <= given.keys():
            values |= zip(names, reading.denoiser(stem), strict=True)
    pipe: DiffusionPipeline = chosen(**{**values, **given})
    pipe.register_to_config(_name_or_path=os.fspath(folder))
    return pipe


class _Denoiser(nn.Module):
    """What one file holds: the UNet, and how it is told the texts."""

    def __init__(self, unet: UNet2DConditionModel, text_proj: KandinskyV20TextProjModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_proj = text_proj

    def names(self) -> dict[str, str]:
        """Key here -> key in the file."""
        unet = {f"unet.{key}": name for key, name in unet_names(self.unet.state_dict()).items()}
        return {**unet, **{f"text_proj.{key}": key for key in self.text_proj.state_dict()}}


class _Reading:
    """The parts of a folder, as a call of the loader wants them."""

    def __init__(self, folder: Path, loading: Loading) -> None:
        self.folder = folder
        self.loading = loading

    def has(self, stem: str) -> bool:
        return any((self.folder / f"{stem}{ending}").is_file() for ending in (".pt", ".safetensors"))

    def file(self, stem: str, ending: str) -> Path:
        """The weights of this name: a pickle only if these may be read."""
        pickled, safe = self.folder / f"{stem}{ending}", self.folder / f"{stem}.safetensors"
        path = pickled if self.loading.use_safetensors is False and pickled.is_file() else safe
        if not path.is_file():
            if pickled.is_file():
                raise ModelFilesError(
                    f"{self.folder} has {stem} only as {pickled.name}, a pickle, which may be made to run code when it "
                    f"is loaded: pass use_safetensors=False if you trust where it comes from."
                )
            raise ModelFilesError(f"{self.folder} has no {pickled.name} and no {safe.name}; download it.")
        check_inside(path, self.folder)
        return path

    def part(self, name: str) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            raise ModelFilesError(f"{self.folder} has no folder {name!r}; download it.")
        check_links(folder, self.folder)
        return folder

    def tokenizer(self, class_name: str, name: str) -> Any:
        import transformers

        folder = self.part(name)
        try:
            return getattr(transformers, class_name).from_pretrained(folder)
        except (OSError, ValueError, ImportError) as error:
            raise ModelFilesError(
                f"The tokenizer in {folder} could not be read: {(str(error).splitlines() or [''])[0]} Where its "
                f"vocabulary is only a spiece.model, install the packages sentencepiece and protobuf."
            ) from error

    def text_encoder(self) -> nn.Module:
        """mCLIP: its configuration is XLM-RoBERTa's alone, so the width of its vectors is read off the weights."""
        from calotype.models.multilingual_clip import MCLIPConfig, MultilingualCLIP
        from calotype.pipelines.components import load_transformers_model, transformers_weights

        folder = self.part("text_encoder1")
        described = {k: v for k, v in read_json(folder / "config.json").items() if k != "model_type"}
        infos = [
            tensor_infos(path)
            for path in transformers_weights(folder, None, self.loading.pickled(folder)).paths
        ]
        last = next((found[_VECTOR] for found in infos if _VECTOR in found), None)
        if last is None or len(last.shape) != 2:
            raise ModelFilesError(f"The weights in {folder} have no {_VECTOR}: they are not mCLIP's.")
        sizes = {"transformerDimSize": last.shape[1], "imageDimSize": last.shape[0]}
        config = MCLIPConfig(**{**described, **sizes})
        return load_transformers_model(MultilingualCLIP, folder, "text_encoder", self.loading, config)

    def text_encoder_2(self) -> nn.Module:
        from transformers import MT5EncoderModel

        from calotype.pipelines.components import load_transformers_model

        return load_transformers_model(
            MT5EncoderModel, self.part("text_encoder2"), "text_encoder_2", self.loading
        )

    def vae(self) -> nn.Module:
        from calotype.models.autoencoder_kl import AutoencoderKL

        path = self.file("vae", ".ckpt")
        infos = tensor_infos(path)
        config = _described(path, lambda: vae_config(infos, prefix_of("vae", infos, str(path))))
        config |= {"scaling_factor": SCALE, "sample_size": SIDE}
        dtype, device = self.loading.dtype_of("vae"), self.loading.device
        return read_model(AutoencoderKL, path, dtype=dtype, device=device, config=config)

    def denoiser(self, stem: str) -> tuple[UNet2DConditionModel, KandinskyV20TextProjModel]:
        """The UNet in a file, and how it is told the texts."""
        from calotype.models.kandinsky_v20_text_proj import KandinskyV20TextProjModel
        from calotype.models.unet_2d_condition import UNet2DConditionModel

        path = self.file(stem, ".pt")
        infos = tensor_infos(path)
        files = weights.WeightFiles((path,), str(path))
        unet = _described(path, lambda: {**guided_unet_config(infos), "sample_size": SIDE // 8})
        text_proj = _described(path, lambda: _text_proj_config(infos))
        both = _Denoiser(
            UNet2DConditionModel._empty(unet, {}, files, on_meta=True)[0],
            KandinskyV20TextProjModel._empty(text_proj, {}, files, on_meta=True)[0],
        )
        fill(both, path, both.names(), dtype=self.loading.dtype_of("unet"), device=self.loading.device)
        for model in (both.unet, both.text_proj):
            model.register_to_config(_name_or_path=str(path))
            model.eval()
        return both.unet, both.text_proj


_VECTOR = "LinearTransformation.weight"


def _scheduler() -> Any:
    from calotype.families.kandinsky_2_0 import SAMPLING
    from calotype.schedulers.ddim import DDIMScheduler

    return DDIMScheduler(**SAMPLING)


def _described(path: Path, config: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration; what it was read off and lacks is named."""
    try:
        return dict(config())
    except (KeyError, IndexError) as error:
        raise ModelFilesError(
            f"{path} is not complete: what it is made of cannot be told without {error}."
        ) from error


def _text_proj_config(infos: Infos) -> dict[str, Any]:
    shapes = {name: infos[f"{name}.weight"].shape for name in ("to_model_dim", "proj", "to_model_dim2")}
    (width, first), (time, pooled), (_, second) = shapes.values()
    return {
        "text_dim": first,
        "pooled_dim": pooled,
        "text_dim_2": second,
        "cross_attention_dim": width,
        "time_embed_dim": time,
    }
