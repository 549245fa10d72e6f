"""Models with random weights, made once and the same in each library, and pipelines of them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks._gpu.sizes import Sizes

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
SCHEDULERS = {
    "pndm": ("PNDMScheduler", {**SCALED, "skip_prk_steps": True, "set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", SCALED),
    "turbo": ("EulerAncestralDiscreteScheduler", {**SCALED, "timestep_spacing": "trailing"}),
}
"""As published with Stable Diffusion 1.5, SDXL and SDXL Turbo."""


def random_model(
    library: Any,
    name: str,
    config: Mapping[str, Any],
    device: torch.device,
    dtype: torch.dtype,
    seed: int = 0,
) -> Any:
    """A model on the device; norms and biases differ from ones and zeros, and layers made as zeros are none."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = getattr(library, name)(**config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif not parameter.any():
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model.to(dtype).eval().requires_grad_(False)


class Stock:
    """The models of some libraries by name; each is made when it is first asked for."""

    def __init__(
        self, libraries: Mapping[str, Any], sizes: Sizes, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.libraries, self.sizes, self.device, self.dtype = libraries, sizes, device, dtype
        self._models: dict[str, dict[str, Any]] = {}
        self._tokenizer: Any = None

    def models(self, name: str) -> dict[str, Any]:
        """A model by the name of the library: the first one's weights are random, the others' are the same."""
        if name not in self._models:
            encodes = name in ("text_encoder", "text_encoder_2")
            self._models[name] = self._encoders(name) if encodes else self._pair(name)
        return self._models[name]

    @property
    def all(self) -> list[Any]:
        """All models that there are, of each library."""
        return [model for of_libraries in self._models.values() for model in of_libraries.values()]

    def drop(self, *names: str) -> None:
        """Forget models that nothing needs any more."""
        for name in names:
            self._models.pop(name, None)

    def _pair(self, name: str) -> dict[str, Any]:
        kind, config = self.sizes.models[name]
        found: dict[str, Any] = {}
        for who, library in self.libraries.items():
            if not found:
                found[who] = random_model(library, kind, config, self.device, self.dtype)
                continue
            first = next(iter(found.values()))
            with torch.device(self.device):
                other = getattr(library, kind)(**config)
            other = other.to(self.dtype).eval().requires_grad_(False)
            other.load_state_dict(first.state_dict())
            found[who] = other
        return found

    def _encoders(self, name: str) -> dict[str, Any]:
        """The text model of CLIP ViT-L, or of OpenCLIP bigG with its projection, in their sizes."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        second, tokenizer = name == "text_encoder_2", self.tokenizer
        size = self.sizes.encoders[second]
        config = CLIPTextConfig(
            **size, intermediate_size=4 * size["hidden_size"], projection_dim=size["hidden_size"],
            max_position_embeddings=self.sizes.tokens, hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device(self.device):
            model: Any = (CLIPTextModelWithProjection if second else CLIPTextModel)(config)
        model = model.to(self.dtype).eval().requires_grad_(False)
        return {who: model if not at else copy.deepcopy(model) for at, who in enumerate(self.libraries)}

    @property
    def tokenizer(self) -> Any:
        """CLIP's tokenizer with a vocabulary of the letters and a few words."""
        if self._tokenizer is None:
            from tests.tiny import tokenizer_folder
            from transformers import CLIPTokenizer

            with tempfile.TemporaryDirectory() as folder:
                self._tokenizer = CLIPTokenizer.from_pretrained(
                    tokenizer_folder(Path(folder) / "tokenizer", self.sizes.tokens)
                )
        return self._tokenizer

    def pipeline(self, who: str, xl: bool, scheduler: str, controlled: bool = False) -> Any:
        """A library's pipeline with everything that a call from prompt to picture needs."""
        library = self.libraries[who]
        kind, config = SCHEDULERS[scheduler]
        names = ["vae", "text_encoder"] + ["text_encoder_2"] * xl + ["controlnet"] * controlled
        parts = {name: self.models(name)[who] for name in names}
        parts["unet"] = self.models("xl_unet" if xl else "unet")[who]
        parts |= {"scheduler": getattr(library, kind)(**config), "tokenizer": self.tokenizer}
        if xl:
            pipe = library.StableDiffusionXLPipeline(
                **parts, tokenizer_2=self.tokenizer, add_watermarker=False
            )
        else:
            name = "StableDiffusionControlNetPipeline" if controlled else "StableDiffusionPipeline"
            pipe = getattr(library, name)(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        pipe.set_progress_bar_config(disable=True)
        return pipe
