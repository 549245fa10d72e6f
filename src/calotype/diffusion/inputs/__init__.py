"""What a user may pass to a pipeline: typed groups of arguments, each with its default, its meaning and its checks.

A pipeline's ``__call__`` signature is put together from the fields of these groups (see ``pipelines.signature``), so
an argument's name, default and description stand in one place.
"""

from __future__ import annotations

from calotype.diffusion.inputs.base import ANY, Inputs, argument
from calotype.diffusion.inputs.embeds import Embedded, Hinted, TextMasks
from calotype.diffusion.inputs.exchange import EARLIER_CALLBACK, Callbacks, EarlierCallback, Output
from calotype.diffusion.inputs.image_prompt import ImagePrompt
from calotype.diffusion.inputs.image_to_video import Decoding, Motion, Pace, Still
from calotype.diffusion.inputs.pictures import Degraded, Depth, Masked, Picture, Size
from calotype.diffusion.inputs.prompts import Batch, MicroConditions, Original, Prompt, TwoPrompts
from calotype.diffusion.inputs.steering import (
    SCALES,
    Adapted,
    Attention,
    Controlled,
    FrameGuide,
    Guide,
    Guided,
    ImageGuide,
    Perturbed,
)
from calotype.diffusion.inputs.unclip import DecoderWay, PriorWay, ReadText, Seen, SuperResolutionWay
from calotype.diffusion.inputs.video import ControlFrames, Drift, Frames, Moving, frames_of, told_by_frame
from calotype.diffusion.inputs.way import Distilled, Noise, Span, Steps

GROUPS: tuple[type[Inputs], ...] = (
    PriorWay,
    DecoderWay,
    SuperResolutionWay,
    ReadText,
    Seen,
    ImageGuide,
    Depth,
    Degraded,
    Embedded,
    Hinted,
    TextMasks,
    Frames,
    Drift,
    Moving,
    ControlFrames,
    Still,
    Motion,
    Pace,
    Decoding,
    FrameGuide,
    Original,
    Distilled,
    EarlierCallback,
    Adapted,
    Prompt,
    TwoPrompts,
    MicroConditions,
    Span,
    Batch,
    Picture,
    Masked,
    Controlled,
    Size,
    Steps,
    Guide,
    Noise,
    Attention,
    ImagePrompt,
    Callbacks,
    Output,
    Perturbed,
    Guided,
)
"""All groups; where two have an argument of one name, the later describes it."""

__all__ = [
    "ANY",
    "EARLIER_CALLBACK",
    "GROUPS",
    "SCALES",
    "Adapted",
    "Attention",
    "Batch",
    "Callbacks",
    "ControlFrames",
    "Controlled",
    "DecoderWay",
    "Decoding",
    "Degraded",
    "Depth",
    "Distilled",
    "Drift",
    "EarlierCallback",
    "Embedded",
    "FrameGuide",
    "Frames",
    "Guide",
    "Guided",
    "Hinted",
    "ImageGuide",
    "ImagePrompt",
    "Inputs",
    "Masked",
    "MicroConditions",
    "Motion",
    "Moving",
    "Noise",
    "Original",
    "Output",
    "Pace",
    "Perturbed",
    "Picture",
    "PriorWay",
    "Prompt",
    "ReadText",
    "Seen",
    "Size",
    "Span",
    "Steps",
    "Still",
    "SuperResolutionWay",
    "TextMasks",
    "TwoPrompts",
    "argument",
    "frames_of",
    "told_by_frame",
]
