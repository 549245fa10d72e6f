"""FreeInit and FreeNoise on and off, for the pipelines whose calls are made with them."""

from __future__ import annotations

from calotype.core.errors import InputError
from calotype.diffusion.free_init import FreeInit
from calotype.diffusion.free_noise import FreeNoise, Interpolate, straight
from calotype.models.unet_motion_model import UNetMotionModel
from calotype.nn.windows import Windows
from calotype.pipelines.pipeline import DiffusionPipeline


class WithFreeInit(DiffusionPipeline):
    """Pipelines that may sample several times, each from the low frequencies of the time before; abstract."""

    free_init: FreeInit | None = None

    def enable_free_init(
        self,
        num_iters: int = 3,
        use_fast_sampling: bool = False,
        method: str = "butterworth",
        order: int = 4,
        spatial_stop_frequency: float = 0.25,
        temporal_stop_frequency: float = 0.25,
    ) -> None:
        """Sample ``num_iters`` times from now on, for videos with less flicker (https://arxiv.org/abs/2312.07537).

        With ``use_fast_sampling`` the earlier samplings take fewer steps. ``method`` is the low-pass filter:
        ``"butterworth"`` of an ``order``, ``"gaussian"`` or ``"ideal"``. Raises ``InputError`` for what is no filter.
        """
        self.free_init = FreeInit(
            num_iters, use_fast_sampling, method, order, spatial_stop_frequency, temporal_stop_frequency
        )

    def disable_free_init(self) -> None:
        """Sample once again."""
        self.free_init = None

    @property
    def free_init_enabled(self) -> bool:
        """Whether calls sample several times."""
        return self.free_init is not None


class WithFreeNoise(DiffusionPipeline):
    """Pipelines that make videos longer than their motion modules know; abstract."""

    free_noise: FreeNoise | None = None
    unet: UNetMotionModel

    def enable_free_noise(
        self,
        context_length: int | None = 16,
        context_stride: int = 4,
        weighting_scheme: str = "pyramid",
        noise_type: str = "shuffle_context",
        prompt_interpolation_callback: Interpolate | None = None,
    ) -> None:
        """Attend along time in windows of ``context_length`` frames from now on (https://arxiv.org/abs/2310.15169).

        One window begins every ``context_stride`` frames; None stands for as many frames as the motion modules know.
        A frame counts in its windows as ``weighting_scheme`` says (``"pyramid"``, ``"flat"``,
        ``"delayed_reverse_sawtooth"``). Noise behind the first window is that before in another order
        (``"shuffle_context"``), the same again (``"repeat_context"``) or noise of its own (``"random"``). A call may
        then have texts by frame as its prompt, between whose embeddings the callback f(first frame, last frame, start,
        end) interpolates, by default in straight lines. Raises ``InputError`` for values without meaning.
        """
        known = self.unet.config.motion_max_seq_length
        length = known if context_length is None else context_length
        if length > known:
            raise InputError(
                f"context_length is {length}; the motion modules know the places of at most {known} frames."
            )
        self.free_noise = FreeNoise(
            Windows(length, context_stride, weighting_scheme),
            noise_type,
            prompt_interpolation_callback or straight,
        )

    def disable_free_noise(self) -> None:
        """Attend among all frames again, and compute all at once."""
        self.free_noise = None
        self.unet.enable_split_inference(None, None)

    @property
    def free_noise_enabled(self) -> bool:
        """Whether attention along time is in windows."""
        return self.free_noise is not None

    def enable_free_noise_split_inference(
        self, spatial_split_size: int = 256, temporal_split_size: int = 16
    ) -> None:
        """Compute the UNet in parts of so many pixels along time and so many frames within them, in less memory."""
        self.unet.enable_split_inference(spatial_split_size, temporal_split_size)
