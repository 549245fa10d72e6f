"""What can be made with a family's checkpoints: which inputs ask for it, and the public classes that declare it."""

from __future__ import annotations

from typing import Any, NamedTuple

from calotype.pipelines.components import public_class
from calotype.pipelines.connected import COMBINED


class Use(NamedTuple):
    """One thing to make: ``needs`` are the pictures that ask for it, ``plain`` the class that declares it.

    ``controls`` names the classes that declare it with a control, by the kind of control. ``decoders`` names those
    whose checkpoints hold only a part of it, and name in their card where the rest is.
    """

    name: str
    needs: tuple[str, ...]
    plain: str
    controls: tuple[tuple[str, str], ...] = ()
    decoders: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all classes that declare this use."""
        return self.plain, *(name for _, name in self.controls), *self.decoders

    def declared(self, control: str | None = None) -> Any:
        """The class that declares this use with a kind of control, or the plain one where there is none."""
        return public_class(dict(self.controls).get(control or "", self.plain))


def _usual(prefix: str, unions: bool = False) -> tuple[Use, ...]:
    """The uses of a family by the names that their classes have had from the start."""

    def use(name: str, end: str, *needs: str, **more: str) -> Use:
        controls = {"controlnet": f"{prefix}ControlNet{end}Pipeline", **more}
        if unions:
            controls["controlnet-union"] = f"{prefix}ControlNetUnion{end}Pipeline"
        return Use(name, needs, f"{prefix}{end}Pipeline", tuple(controls.items()))

    return (
        use("text-to-image", "", adapter=f"{prefix}AdapterPipeline"),
        use("image-to-image", "Img2Img", "image"),
        use("inpainting", "Inpaint", "image", "mask_image"),
        Use("editing", ("image",), f"{prefix}InstructPix2PixPipeline"),
    )


def _with_prior(prefix: str, hinted: str = "") -> tuple[Use, ...]:
    """The uses of a decoder together with its prior; ``hinted`` is in the names of decoders that read a hint."""

    def use(name: str, end: str, *needs: str, more: tuple[str, ...] = ()) -> Use:
        alone = f"{prefix}{end}Pipeline"
        return Use(name, needs, COMBINED[alone], decoders=(alone, *more))

    with_hint = [(f"{prefix}{hinted}{end}Pipeline",) if hinted else () for end in ("", "Img2Img")]
    return (
        use("text-to-image", "", more=with_hint[0]),
        use("image-to-image", "Img2Img", "image", more=with_hint[1]),
        use("inpainting", "Inpaint", "image", "mask_image"),
    )


USES: dict[str, tuple[Use, ...]] = {
    "stable-diffusion": _usual("StableDiffusion"),
    "stable-diffusion-xl": _usual("StableDiffusionXL", unions=True),
    "latent-consistency": (
        Use("text-to-image", (), "LatentConsistencyModelPipeline"),
        Use("image-to-image", ("image",), "LatentConsistencyModelImg2ImgPipeline"),
    ),
    "kandinsky-2.0": (
        Use("text-to-image", (), "KandinskyV20Pipeline"),
        Use("image-to-image", ("image",), "KandinskyV20Img2ImgPipeline"),
        Use("inpainting", ("image", "mask_image"), "KandinskyV20InpaintPipeline"),
    ),
    "kandinsky-2.1": _with_prior("Kandinsky"),
    "kandinsky-2.2": _with_prior("KandinskyV22", "Controlnet"),
    "kandinsky-3": (
        Use("text-to-image", (), "Kandinsky3Pipeline"),
        Use("image-to-image", ("image",), "Kandinsky3Img2ImgPipeline"),
    ),
    "stable-diffusion-depth": (Use("depth-to-image", ("image",), "StableDiffusionDepth2ImgPipeline"),),
    "stable-diffusion-upscaler": (Use("upscaling", ("image",), "StableDiffusionUpscalePipeline"),),
    "latent-upscaler": (Use("upscaling", ("image",), "StableDiffusionLatentUpscalePipeline"),),
    "image-variation": (Use("variation", ("image",), "StableDiffusionImageVariationPipeline"),),
    "ddpm": (Use("unconditional", (), "DDPMPipeline"),),
    "ddim": (Use("unconditional", (), "DDIMPipeline"),),
}
"""Family -> its uses; which of them a checkpoint serves follows from what its denoiser reads."""


def uses_of(class_name: str) -> tuple[Use, tuple[Use, ...]] | None:
    """The use that a pipeline class declares and all uses of its family; None for a class that stands for itself."""
    for uses in USES.values():
        for use in uses:
            if class_name in use.classes:
                return use, uses
    return None
