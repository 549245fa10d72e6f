"""LoRA weights in a single model: loading, choosing, fusing, saving; what a pipeline does for all of its models."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from calotype.core.errors import InputError

if TYPE_CHECKING:
    from calotype.adapters.formats.files import Source


class AdapterAccess:
    """For models whose linear layers and convolutions take updates; their state dictionaries stay as they are."""

    _adapted_as: ClassVar[str] = "unet"
    """The name that files have for such a model."""

    def load_lora_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Source,
        prefix: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load LoRA weights from a file, folder, Hub repository or state dictionary; they act from now on.

        With ``prefix`` only keys that start with it and a dot count. ``hotswap`` puts them in the place of those of the
        same ``adapter_name``, whose tensors stay where they are. Further: ``weight_name``, ``subfolder``,
        ``use_safetensors`` (``False`` allows pickles) and the Hub's options. Raises ``WeightsError`` for weights that
        are not for this model and ``InputError`` for a name that is in use.
        """
        from calotype.adapters import loading

        name = kwargs.pop("adapter_name", None)
        rank = getattr(self, "_lora_rank", None)
        contents = loading.opened(pretrained_model_name_or_path_or_dict, prefix, kwargs)
        loading.load({self._adapted_as: self._module}, contents, self._adapted_as, name, hotswap, rank)

    def add_adapter(self, adapter_config: Any, adapter_name: str = "default") -> None:
        """Give the model LoRA weights to train, as a ``peft.LoraConfig`` describes them; they act from now on.

        Their parameters are among the model's :meth:`parameters` and require gradients while they act;
        :meth:`save_lora_adapter` saves them. Raises ``InputError`` for a name that is in use and for layers that the
        model does not have.
        """
        from calotype.adapters import fresh

        fresh.put(self._module, adapter_config, adapter_name)

    def save_lora_adapter(
        self,
        save_directory: str | os.PathLike[str],
        adapter_name: str = "default",
        upcast_before_saving: bool = False,
        safe_serialization: bool = True,
        weight_name: str | None = None,
    ) -> None:
        """Save an adapter's weights in a folder, in the layout of PEFT's and the reference's files.

        ``upcast_before_saving`` saves them in float32. Raises ``InputError`` for a name that there is none of.
        """
        from calotype.adapters import model
        from calotype.adapters.formats import files

        tensors = model.tensors(self._module, adapter_name)
        if upcast_before_saving:
            tensors = {key: tensor.to(torch.float32) for key, tensor in tensors.items()}
        files.write(
            {"": tensors},
            Path(save_directory),
            weight_name=weight_name,
            safe_serialization=safe_serialization,
        )

    def load_attn_procs(self, pretrained_model_name_or_path_or_dict: Source, **kwargs: Any) -> None:
        """Load weights that take the place of attention's (Custom Diffusion, arXiv:2212.04488); LoRA weights too.

        They are an adapter: chosen, weighed and taken out as others. See :meth:`load_lora_adapter`.
        """
        self.load_lora_adapter(pretrained_model_name_or_path_or_dict, **kwargs)

    def save_attn_procs(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save the weights of Custom Diffusion that act, in a folder.

        Raises ``InputError`` where there are none: LoRA weights are saved by :meth:`save_lora_adapter`.
        """
        from calotype.adapters import custom_diffusion
        from calotype.adapters.formats import files

        tensors = custom_diffusion.tensors(self._module)
        if is_main_process:
            name = f"{files.CUSTOM_WEIGHTS}{'.safetensors' if safe_serialization else '.bin'}"
            files.write(
                {"": tensors},
                Path(save_directory),
                weight_name=weight_name or name,
                safe_serialization=safe_serialization,
                save_function=save_function,
            )

    def set_adapters(self, adapter_names: list[str] | str, weights: Any = None) -> None:
        """Let these adapters act, and no others, as strongly as ``weights`` say: a number, one for each, or by block.

        By block: ``{"down": …, "mid": …, "up": {"block_0": …, "block_1": […]}}``. Raises ``InputError``.
        """
        from calotype.adapters import blocks, model

        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        layers = model.layers_of(self._module)
        given = one_for_each(names, weights)
        chosen = {name: blocks.strengths(one, layers) for name, one in zip(names, given, strict=True)}
        model.choose(self._module, chosen)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Let these adapters act at full strength, and no others."""
        self.set_adapters(adapter_name)

    def active_adapters(self) -> list[str]:
        """The adapters that act, unless they are switched off."""
        from calotype.adapters import model

        return list(model.active(self._module))

    def disable_adapters(self) -> None:
        """Switch all adapters off; what is fused stays in the weights."""
        from calotype.adapters import model

        model.switch(self._module, False)

    def enable_adapters(self) -> None:
        """Switch the adapters on again, as they were."""
        from calotype.adapters import model

        model.switch(self._module, True)

    def disable_lora(self) -> None:
        """The same as :meth:`disable_adapters`."""
        self.disable_adapters()

    def enable_lora(self) -> None:
        """The same as :meth:`enable_adapters`."""
        self.enable_adapters()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Take adapters out of the model; ``InputError`` for a name that there is none of."""
        from calotype.adapters import model

        model.remove(self._module, [adapter_names] if isinstance(adapter_names, str) else adapter_names)

    def unload_lora(self) -> None:
        """Take all adapters out of the model, which then is the one that it was; what is fused stays."""
        from calotype.adapters import model

        model.unload(self._module)

    def fuse_lora(
        self,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: list[str] | None = None,
    ) -> None:
        """Make adapters (the active ones, if not named) a part of the weights, which then cost nothing.

        That all weights stay finite is always checked, so ``safe_fusing`` has nothing to add.
        """
        from calotype.adapters import model

        model.fuse(self._module, adapter_names, lora_scale)

    def unfuse_lora(self) -> None:
        """Give the weights back the values that they had, bit for bit."""
        from calotype.adapters import model

        model.unfuse(self._module)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Give adapters that are loaded from now on room for ``target_rank``, so that they can be exchanged in place.

        ``check_compiled`` is accepted for compatibility.
        """
        self.__dict__["_lora_rank"] = checked_rank(target_rank)

    @property
    def _module(self) -> nn.Module:
        assert isinstance(self, nn.Module)
        return self


def one_for_each(names: Sequence[str], weights: Any) -> list[Any]:
    """A weight for each adapter from one for all or a list; ``InputError`` for a list of another length."""
    given = list(weights) if isinstance(weights, list | tuple) else [weights] * len(names)
    if len(given) != len(names):
        raise InputError(f"There are {len(given)} weights for {len(names)} adapters; give one for each.")
    if len(set(names)) != len(names):
        raise InputError(f"An adapter is named twice in {', '.join(names)}.")
    return given


def checked_rank(rank: int) -> int:
    """A rank; ``InputError`` for what is none."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"target_rank must be a whole number above 0, not {rank!r}.")
    return rank
