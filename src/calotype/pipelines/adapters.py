"""LoRA weights in a pipeline: for its denoiser and its text encoders together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from calotype.core.errors import InputError
from calotype.models.adapter_access import checked_rank, one_for_each
from calotype.pipelines.bundled import locate

if TYPE_CHECKING:
    from calotype.adapters.formats.files import Source

Layers = Mapping[str, torch.Tensor] | nn.Module | None
"""What is saved for one model: tensors by their keys in files, or a module whose state they are."""


class Adapters:
    """The calls of a pipeline that concern LoRA weights.

    They stand beside the layers that they change: the models' state dictionaries, and what is saved of the pipeline,
    stay as they are until an adapter is fused. Threads may run with different strengths, given in each call as
    ``cross_attention_kwargs={"scale": …}``; loading and choosing is for the time between calls.
    """

    _lora_loadable_modules: ClassVar[tuple[str, ...]] = ("unet", "text_encoder", "text_encoder_2")
    unet_name: ClassVar[str] = "unet"
    text_encoder_name: ClassVar[str] = "text_encoder"

    # -- files -------------------------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Source,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load LoRA weights from a file, folder, Hub repository or state dictionary; they act from now on.

        The name of a bundled model means the low-rank weights in its folder.

        The file may be the reference's, PEFT's, Kohya's or LyCORIS's (LoRA, LoCon, LoHa, LoKr, DoRA). With ``hotswap``
        the weights take the place of those of the same ``adapter_name``, whose tensors stay where they are.
        Further: ``weight_name``, ``subfolder``, ``use_safetensors`` (``False`` allows pickles) and the Hub's options.

        Raises ``WeightsError`` for weights that are not for this pipeline's models, ``ModelFilesError`` for files that
        are missing or damaged and ``InputError`` for a name that is in use; a part that has no place is warned of.
        """
        from calotype.adapters import loading

        kwargs.pop("prefix", None)
        source = pretrained_model_name_or_path_or_dict
        if isinstance(source, (str, os.PathLike)):
            source = locate(source)
        contents = loading.opened(source, None, kwargs)
        models = self._adaptable()
        rank = self.__dict__.get("_lora_rank")
        with self._suspended():
            loading.load(models, contents, next(iter(models)), adapter_name, hotswap, rank)

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: Source, **kwargs: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, float] | None]:
        """The tensors of a LoRA file under the file's own keys, and the α of each layer; None if it has none."""
        from calotype.adapters.formats import files

        chosen = {name: kwargs.pop(name, None) for name in ("weight_name", "subfolder", "use_safetensors")}
        state, _, _ = files.read(
            pretrained_model_name_or_path_or_dict, options=files.hub.HubOptions.take(kwargs), **chosen
        )
        alphas = {key: float(tensor) for key, tensor in state.items() if key.endswith(".alpha")}
        return {key: tensor for key, tensor in state.items() if key not in alphas}, alphas or None

    @classmethod
    def load_lora_into_unet(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        network_alphas: Mapping[str, float] | None,
        unet: nn.Module,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load the part of LoRA weights that is for the UNet; see :meth:`lora_state_dict`."""
        _into("unet", unet, state_dict, network_alphas, adapter_name, hotswap)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        network_alphas: Mapping[str, float] | None,
        text_encoder: nn.Module,
        prefix: str | None = None,
        lora_scale: float = 1.0,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load the part of LoRA weights that is for a text encoder, which files call ``prefix``."""
        from calotype.adapters import model

        name = _into(
            prefix or "text_encoder", text_encoder, state_dict, network_alphas, adapter_name, hotswap
        )
        if lora_scale != 1.0:
            model.choose(text_encoder, {name: lambda layer: lora_scale})

    @classmethod
    def write_lora_layers(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        save_directory: str | os.PathLike[str],
        is_main_process: bool,
        weight_name: str | None,
        save_function: Callable[..., Any] | None,
        safe_serialization: bool,
        lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a LoRA file with these keys; it appears whole."""
        from calotype.adapters.formats import files

        if is_main_process:
            files.write(
                {"": state_dict},
                save_directory,
                weight_name=weight_name,
                metadata={"": lora_adapter_metadata},
                safe_serialization=safe_serialization,
                save_function=save_function,
            )

    @staticmethod
    def pack_weights(layers: nn.Module | Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
        """The tensors of a module, or by their keys, as files have them for the model ``prefix``."""
        tensors = layers.state_dict() if isinstance(layers, nn.Module) else layers
        return {f"{prefix}.{key}": tensor for key, tensor in tensors.items()}

    # -- which act, and how strongly ---------------------------------------------------------------------------

    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float | dict[str, Any] | list[float] | list[dict[str, Any]] | None = None,
    ) -> None:
        """Let these adapters act, and no others, as strongly as ``adapter_weights`` say (by default 1).

        A weight is a number, or a mapping by model; the UNet's may be one by block:
        ``{"unet": {"down": 1, "mid": 0.5, "up": {"block_0": 1, "block_1": [0.2, 0.4]}}, "text_encoder": 0.8}``.
        Raises ``InputError`` for a name that no model has and for weights that do not fit.
        """
        from calotype.adapters import blocks, model

        models = self._adaptable()
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = one_for_each(names, adapter_weights)
        self._check_names(names)
        for weight in weights:
            if isinstance(weight, Mapping) and (wrong := [key for key in weight if key not in models]):
                raise InputError(
                    f"An adapter's weights by model are for {', '.join(models)} here, not {wrong[0]!r}."
                )
        chosen: dict[str, dict[str, Any]] = {}
        for key, module in models.items():
            layers = model.layers_of(module)
            own = model.adapters(module)
            chosen[key] = {
                name: blocks.strengths(weight.get(key) if isinstance(weight, Mapping) else weight, layers)
                for name, weight in zip(names, weights, strict=True)
                if name in own
            }
        for key, module in models.items():
            model.choose(module, chosen[key])

    def get_active_adapters(self) -> list[str]:
        """The adapters that act, unless they are switched off."""
        from calotype.adapters import model

        return list(
            dict.fromkeys(name for module in self._adaptable().values() for name in model.active(module))
        )

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The adapters of each model that has any."""
        from calotype.adapters import model

        found = {key: list(model.adapters(module)) for key, module in self._adaptable().items()}
        return {key: names for key, names in found.items() if names}

    def disable_lora(self) -> None:
        """Switch all adapters off; what is fused stays in the weights."""
        self._switch(False)

    def enable_lora(self) -> None:
        """Switch the adapters on again, as they were."""
        self._switch(True)

    def _switch(self, on: bool) -> None:
        from calotype.adapters import model

        for module in self._adaptable().values():
            model.switch(module, on)

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Take adapters out of all models; ``InputError`` for a name that there is none of."""
        from calotype.adapters import model

        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check_names(names)
        with self._suspended():
            for module in self._adaptable().values():
                own = model.adapters(module)
                model.remove(module, [name for name in names if name in own])

    def unload_lora_weights(self) -> None:
        """Take all adapters out of all models, which then are the ones that they were; what is fused stays."""
        from calotype.adapters import model

        with self._suspended():
            for module in self._adaptable().values():
                model.unload(module)

    def set_lora_device(self, adapter_names: list[str], device: torch.device | str | int) -> None:
        """Move the tensors of adapters; those that act must be where their models are."""
        from calotype.adapters import model

        self._check_names(adapter_names)
        for module in self._adaptable().values():
            for layer in model.adapted_layers(module).values():
                for name in adapter_names:
                    if (update := layer.update_named(name)) is not None:
                        update.to(device)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Give adapters that are loaded from now on room for ``target_rank``, so that they can be exchanged in place.

        Without this an adapter can be exchanged for one of its own or a lower rank. ``check_compiled`` is accepted for
        compatibility.
        """
        self.__dict__["_lora_rank"] = checked_rank(target_rank)

    # -- in the weights ----------------------------------------------------------------------------------------

    def fuse_lora(
        self,
        components: list[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Make adapters (the active ones, if not named) a part of the weights, which then cost nothing in a call.

        ``components`` names the models, by default all. What was there is kept in the host's memory for
        :meth:`unfuse_lora`. That all weights stay finite is always checked, so ``safe_fusing`` has nothing to add.
        """
        from calotype.adapters import model

        self._check_names(adapter_names or ())
        with self._suspended():
            for module in self._named(components).values():
                own = model.adapters(module)
                names = None if adapter_names is None else [name for name in adapter_names if name in own]
                model.fuse(module, names, lora_scale)

    def unfuse_lora(self, components: list[str] | None = None) -> None:
        """Give the models' weights back the values that they had before :meth:`fuse_lora`, bit for bit."""
        from calotype.adapters import model

        with self._suspended():
            for module in self._named(components).values():
                model.unfuse(module)

    @property
    def fused_loras(self) -> set[str]:
        """The adapters that are a part of weights."""
        from calotype.adapters import model

        return {name for module in self._adaptable().values() for name in model.fused(module)}

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are a part of weights."""
        return len(self.fused_loras)

    @property
    def lora_scale(self) -> float:
        """How strongly adapters act in a call that does not say it."""
        return 1.0

    # -- the models --------------------------------------------------------------------------------------------

    def _adaptable(self) -> dict[str, nn.Module]:
        """The models that adapters are for, by their names in files; ``InputError`` where there are none."""
        models: dict[str, nn.Module] = self._modules_by_name  # type: ignore[attr-defined]
        found = {  # a compiled model stands for the one inside
            _in_files(name): getattr(models[name], "_orig_mod", models[name])
            for name in self._lora_loadable_modules
            if name in models
        }
        if not found:
            raise InputError(
                f"A {type(self).__name__} has none of {', '.join(self._lora_loadable_modules)}: LoRA "
                f"weights have nothing to act on."
            )
        return found

    def _named(self, components: list[str] | None) -> dict[str, nn.Module]:
        models = self._adaptable()
        if not components:
            return models
        wanted = set(map(_in_files, components))
        if wrong := wanted.difference(models, map(_in_files, self._lora_loadable_modules)):
            raise InputError(
                f"components may name {', '.join(models)}, not {wrong.pop()!r}: adapters are for these models."
            )
        return {key: module for key, module in models.items() if key in wanted}

    def _check_names(self, names: Any) -> None:
        known = {name for own in self.get_list_adapters().values() for name in own}
        for name in names:
            if name not in known:
                raise InputError(
                    f"There is no adapter {name!r}; there are {', '.join(map(repr, sorted(known))) or 'none'}."
                )

    def _suspended(self) -> Any:
        """Offloading suspended while layers or weights are changed."""
        return self._at_home(None)  # type: ignore[attr-defined]


def _in_files(component: str) -> str:
    """What files call a component: where a pipeline holds another one, that is a part of its name."""
    return "prior" if component == "prior_prior" else component


class SavesLora:
    """Saving LoRA weights of a pipeline with one text encoder."""

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Layers = None,
        text_encoder_lora_layers: Layers = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write LoRA weights, by the keys of their layers, as one file into a folder, which is made.

        The metadata are PEFT's settings, as α. Raises ``InputError`` where there are no layers.
        """
        if is_main_process:
            _save(
                {"unet": unet_lora_layers, "text_encoder": text_encoder_lora_layers},
                {"unet": unet_lora_adapter_metadata, "text_encoder": text_encoder_lora_adapter_metadata},
                save_directory,
                weight_name=weight_name,
                save_function=save_function,
                safe_serialization=safe_serialization,
            )


class SavesLoraOfTwo:
    """Saving LoRA weights of a pipeline with two text encoders."""

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Layers = None,
        text_encoder_lora_layers: Layers = None,
        text_encoder_2_lora_layers: Layers = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write LoRA weights, by the keys of their layers, as one file into a folder, which is made.

        The metadata are PEFT's settings, as α. Raises ``InputError`` where there are no layers.
        """
        if is_main_process:
            _save(
                {
                    "unet": unet_lora_layers,
                    "text_encoder": text_encoder_lora_layers,
                    "text_encoder_2": text_encoder_2_lora_layers,
                },
                {
                    "unet": unet_lora_adapter_metadata,
                    "text_encoder": text_encoder_lora_adapter_metadata,
                    "text_encoder_2": text_encoder_2_lora_adapter_metadata,
                },
                save_directory,
                weight_name=weight_name,
                save_function=save_function,
                safe_serialization=safe_serialization,
            )


def _save(
    layers: Mapping[str, Layers], metadata: Mapping[str, Any], folder: str | os.PathLike[str], **options: Any
) -> None:
    from calotype.adapters.formats import files

    tensors: dict[str, Mapping[str, torch.Tensor]] = {
        key: own.state_dict() if isinstance(own, nn.Module) else own for key, own in layers.items() if own
    }
    files.write(tensors, folder, metadata=metadata, **options)


def _into(
    key: str,
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    alphas: Mapping[str, float] | None,
    name: str | None,
    hotswap: bool,
) -> str:
    """Load what a state dictionary has for one model, and leave what it has for others; the adapter's name."""
    from calotype.adapters import loading
    from calotype.adapters.formats.keys import sorted_out

    whole = {**state, **{key: torch.tensor(alpha) for key, alpha in (alphas or {}).items()}}
    contents = loading.for_model(sorted_out(whole, "The given state dictionary"), key)
    return loading.load({key: module}, contents, key, name, hotswap, None)
