"""What a pipeline offers to save memory and time: offloading, slicing, tiling, FreeU, fused projections.

PyTorch's own attention never holds the matrix of scores, so the calls that replaced or sliced it in earlier programs
are accepted and have nothing left to do.
"""

from __future__ import annotations

import functools
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from calotype.acceleration.options import Options
from calotype.acceleration.pipeline import Acceleration, give_back
from calotype.acceleration.switch import is_on
from calotype.core.errors import InputError
from calotype.core.memory import empty_cache
from calotype.models.attention_access import AttentionAccess
from calotype.offloading.accelerator import Accelerator, accelerators_of, release
from calotype.offloading.groups import HOST, Grouping, names_of

logger = logging.getLogger(__name__)


class Efficiency:
    """The calls of a pipeline that concern speed and memory; none changes what the pipeline's files hold."""

    model_cpu_offload_seq: ClassVar[str | None] = None
    """The models that take turns on the accelerator, as ``"text_encoder->unet->vae"``."""
    _exclude_from_cpu_offload: ClassVar[tuple[str, ...]] = ()
    hf_device_map: ClassVar[None] = None
    """Pipelines are never spread over devices."""

    @property
    def _modules_by_name(self) -> dict[str, torch.nn.Module]:
        components: dict[str, Any] = self.components  # type: ignore[attr-defined]
        return {k: v for k, v in components.items() if isinstance(v, torch.nn.Module)}

    # -- acceleration ------------------------------------------------------------------------------------------

    @property
    def acceleration(self) -> Acceleration | None:
        """How calls on CUDA are made faster; ``pipe.acceleration.report()`` says what is in use.

        None if ``calotype.acceleration.off()`` or ``CALOTYPE_ACCELERATION=0`` switched it off for all. Set it to None
        to switch it off for this pipeline, or to ``calotype.acceleration.Options``. Raises ``InputError`` for
        options that concern none of the pipeline's models.
        """
        options = self.__dict__.get("_acceleration", Options())
        if options is None or not is_on():
            return None
        return Acceleration(lambda: self.components, options)  # type: ignore[attr-defined]

    @acceleration.setter
    def acceleration(self, value: Acceleration | Options | None) -> None:
        options = value.options if isinstance(value, Acceleration) else value
        if options is not None and not isinstance(options, Options):
            raise InputError(
                f"acceleration is None, calotype.acceleration.Options or another pipeline's, not {value!r}."
            )
        if options is not None:
            Acceleration(lambda: self.components, options).check()  # type: ignore[attr-defined]
        self.__dict__["_acceleration"] = options

    # -- offloading --------------------------------------------------------------------------------------------

    def enable_model_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the models in the host's memory; each is on the accelerator while it is needed.

        Those named in ``model_cpu_offload_seq`` take turns, others (a ControlNet) stay until the call ends.
        ``gpu_id`` or ``device`` chooses the accelerator; without one this does nothing. Raises ``InputError`` for a
        device that cannot be meant or a class without ``model_cpu_offload_seq``.
        """
        if self.model_cpu_offload_seq is None:
            raise InputError(
                f"{type(self).__name__} does not say in which order its models run: set model_cpu_offload_seq, as in "
                f"'text_encoder->unet->vae'."
            )
        self._offload(gpu_id, device, tuple(self.model_cpu_offload_seq.split("->")))

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """Keep the models in the host's memory; each layer is on the accelerator while it computes.

        This takes the least memory and the most time. ``gpu_id``, ``device``: as in :meth:`enable_model_cpu_offload`.
        """
        self._offload(gpu_id, device, None)

    def enable_group_offload(
        self,
        onload_device: torch.device,
        offload_device: torch.device = HOST,
        offload_type: str = "block_level",
        num_blocks_per_group: int | None = None,
        non_blocking: bool = False,
        use_stream: bool = False,
        record_stream: bool = False,
        low_cpu_mem_usage: bool = False,
        offload_to_disk_path: str | None = None,
        exclude_modules: str | list[str] | None = None,
    ) -> None:
        """Keep the models in the host's memory; groups of blocks are on the accelerator while they compute.

        ``offload_type="block_level"`` brings ``num_blocks_per_group`` blocks at a time, ``"leaf_level"`` single layers.
        With ``use_stream`` the next ones are copied from pinned memory while these compute; ``low_cpu_mem_usage`` pins
        them each time, and ``record_stream`` lets copies run further ahead in more memory. With
        ``offload_to_disk_path`` the weights stay in files there. The components in ``exclude_modules`` stay on the
        accelerator. Raises ``InputError`` for arguments without meaning, or a device that is not there.
        """
        grouping = Grouping(
            onload_device, offload_device, offload_type, num_blocks_per_group, non_blocking, use_stream,
            record_stream, low_cpu_mem_usage, offload_to_disk_path,
        )  # fmt: skip
        excluded = names_of(exclude_modules)
        models = self._modules_by_name
        if unknown := [name for name in excluded if name not in models]:
            raise InputError(f"exclude_modules names {unknown[0]!r}; the models are {', '.join(models)}.")
        self.remove_all_hooks()
        self._visit(
            grouping.accelerator((*self._exclude_from_cpu_offload, *excluded), shared=True), grouping.home
        )

    def _visit(self, accelerator: Accelerator, home: torch.device) -> None:
        for name, model in self._modules_by_name.items():
            model.to(home)
            accelerator.host(name, model)
        give_back(self._modules_by_name.values())
        empty_cache(accelerator.device)

    def _offload(
        self, gpu_id: int | None, device: torch.device | str | None, order: tuple[str, ...] | None
    ) -> None:
        place = _accelerator(gpu_id, device)
        if place is None:
            logger.warning(
                "There is no accelerator, so offloading has nothing to do; the models stay as they are."
            )
            return
        self.remove_all_hooks()
        self._visit(Accelerator(place, order, self._exclude_from_cpu_offload), HOST)

    def remove_all_hooks(self) -> None:
        """End offloading: the models stay in the host's memory, as any that were never moved."""
        release(self._modules_by_name.values())

    def maybe_free_model_hooks(self) -> None:
        """Clear the accelerator of the models that offloading has brought there, as the end of each call does."""
        for accelerator in accelerators_of(self._modules_by_name.values()):
            accelerator.clear()

    def reset_device_map(self) -> None:
        """Accepted for compatibility: there is never a device map."""

    @property
    def _execution_device(self) -> torch.device:
        """Where a call computes: the accelerator that the models are brought to, or where they are."""
        for accelerator in accelerators_of(self._modules_by_name.values()):
            return accelerator.device
        return self.device  # type: ignore[attr-defined]

    @contextmanager
    def offloaded(self) -> Iterator[None]:
        """For the time of a call: what was exchanged or added since is offloaded with the rest; then all leave."""
        models = self._modules_by_name
        shared = [place for place in accelerators_of(models.values()) if place.shared][:1]
        for name, model in models.items():
            for accelerator in accelerators_of([model]) or shared:
                accelerator.host(name, model)
        try:
            yield
        finally:
            self.maybe_free_model_hooks()

    @contextmanager
    def _at_home(self, device: torch.device | None) -> Iterator[Mapping[str, torch.device | None]]:
        """Offloading suspended, so that weights can be changed; gives the device that each model may be moved to."""
        models = self._modules_by_name
        visits = {name: accelerators_of([model]) for name, model in models.items()}
        places: dict[str, torch.device | None] = dict.fromkeys(models, device)
        if device is not None and device.type != "cpu":
            for name in models:
                for accelerator in visits[name]:
                    if accelerator.by_piece and accelerator.shared:
                        raise InputError(
                            f"The pipeline offloads its models layer by layer, so it cannot be moved to {device}; call "
                            f"remove_all_hooks() first."
                        )
                    places[name] = None
            if staying := [name for name in models if places[name] is None]:
                logger.warning(
                    "The pipeline brings %s to %s by itself; to() leaves %s.",
                    ", ".join(staying),
                    visits[staying[0]][0].device,
                    "it" if len(staying) == 1 else "them",
                )
        release(models.values())
        try:
            yield places
        finally:
            for name, accelerators in visits.items():
                for accelerator in accelerators:
                    accelerator.host(name, models[name])

    # -- giving back -------------------------------------------------------------------------------------------

    def unload(self) -> None:
        """Give back the memory of all models; afterwards the pipeline cannot be called any more.

        Models that another pipeline or variable holds stay with that. Raises ``InputError`` during a call.
        """
        if len(self.__dict__.get("_calls", ())):
            raise InputError(
                "The pipeline is running and cannot be unloaded; wait, or end it with `_interrupt`."
            )
        models = self._modules_by_name
        devices = {tensor.device for model in models.values() for tensor in model.parameters()}
        devices |= {accelerator.device for accelerator in accelerators_of(models.values())}
        self.maybe_free_model_hooks()
        for name in models:
            self.__dict__[name] = Unloaded(name)
        models.clear()
        gc.collect()
        for device in devices:
            empty_cache(device)

    # -- attention ---------------------------------------------------------------------------------------------

    def enable_xformers_memory_efficient_attention(
        self, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """Accepted for compatibility: PyTorch's attention, which is always used, saves the same memory."""
        _say_once("PyTorch's own attention serves in the place of xFormers; it is always in use.")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Accepted for compatibility; see :meth:`enable_xformers_memory_efficient_attention`."""

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """Accepted for compatibility; see :meth:`enable_xformers_memory_efficient_attention`."""

    def enable_attention_slicing(self, slice_size: str | int = "auto") -> None:
        """Accepted for compatibility: PyTorch's attention never holds the matrix that slicing would cut up.

        Raises ``InputError`` if ``slice_size`` is not ``"auto"``, ``"max"`` or a positive number.
        """
        self.set_attention_slice(slice_size)
        _say_once("Attention needs no slicing: PyTorch's never holds the matrix of scores.")

    def disable_attention_slicing(self) -> None:
        """Accepted for compatibility; see :meth:`enable_attention_slicing`."""

    def set_attention_slice(self, slice_size: str | int | None) -> None:
        """Accepted for compatibility; see :meth:`enable_attention_slicing`."""
        for model in self._modules_by_name.values():
            if isinstance(model, AttentionAccess):
                model.set_attention_slice(slice_size)

    # -- the autoencoder and the denoiser ----------------------------------------------------------------------

    def enable_vae_slicing(self) -> None:
        """Encode and decode one picture of a batch at a time; the result is the same."""
        self._part("vae", "enable_slicing")()

    def disable_vae_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self._part("vae", "disable_slicing")()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large pictures in overlapping tiles; the result changes a little."""
        self._part("vae", "enable_tiling")()

    def disable_vae_tiling(self) -> None:
        """Encode and decode whole pictures again."""
        self._part("vae", "disable_tiling")()

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale skips (``s``) and backbone (``b``) of the UNet's first and second up stage (arXiv:2309.11497)."""
        self._part("unet", "enable_freeu")(s1=s1, s2=s2, b1=b1, b2=b2)

    def disable_freeu(self) -> None:
        """Undo :meth:`enable_freeu`."""
        self._part("unet", "disable_freeu")()

    def enable_tome(self, ratio: float = 0.5, **settings: Any) -> None:
        """Merge ``ratio`` of the UNet's pixels in attention, which saves time and changes the picture a little.

        https://arxiv.org/abs/2303.17604; ``settings`` are those of the UNet's own ``enable_tome``.
        """
        self._part("unet", "enable_tome")(ratio, **settings)

    def disable_tome(self) -> None:
        """Undo :meth:`enable_tome`: everything is as it was, to the bit."""
        self._part("unet", "disable_tome")()

    def enable_style_aligned(self, **settings: Any) -> None:
        """Give all pictures of a call the style of its first (https://arxiv.org/abs/2312.02133).

        ``settings`` are those of the UNet's own ``enable_style_aligned``.
        """
        self._part("unet", "enable_style_aligned")(**settings)

    def disable_style_aligned(self) -> None:
        """Undo :meth:`enable_style_aligned`: each picture is by itself again."""
        self._part("unet", "disable_style_aligned")()

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Compute the attention's queries, keys and values in one product; numbers and files stay the same."""
        for name, wanted in (("unet", unet), ("vae", vae)):
            if wanted:
                self._part(name, "fuse_qkv_projections")()

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Undo :meth:`fuse_qkv_projections`."""
        for name, wanted in (("unet", unet), ("vae", vae)):
            if wanted:
                self._part(name, "unfuse_qkv_projections")()

    def _part(self, name: str, method: str) -> Callable[..., None]:
        """A component's method; ``InputError`` where the pipeline has no such component or it cannot do this."""
        part = getattr(self, name, None)
        found = getattr(part, method, None)
        if found is None:
            what = (
                "no such component" if part is None else f"a {type(part).__name__} there, which cannot do it"
            )
            raise InputError(f"{method} concerns the {name}, and this {type(self).__name__} has {what}.")
        return found


class Unloaded:
    """What stands in the place of a model that was given back: any use of it says so."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise InputError(
            f"The {self._name} of this pipeline was given back by unload(); load the pipeline again with "
            f"from_pretrained."
        )


def _accelerator(gpu_id: int | None, device: torch.device | str | None) -> torch.device | None:
    """The device to bring models to; None where this machine has no accelerator or the host is named."""
    available = torch.accelerator.current_accelerator(check_available=True)
    try:
        place = available if device is None else torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is not a device: {str(error).splitlines()[0]}") from None
    if place is not None and place.index is not None and gpu_id is not None:
        raise InputError(f"gpu_id={gpu_id} and device={str(device)!r} both give a number; pass one of them.")
    if place is None or available is None or place.type != available.type:
        return None
    return place if gpu_id is None else torch.device(place.type, gpu_id)


@functools.cache
def _say_once(message: str) -> None:
    logger.info(message)
