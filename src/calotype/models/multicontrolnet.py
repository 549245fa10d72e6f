"""Several ControlNets at once: their residuals are added (https://arxiv.org/abs/2302.05543, section 3.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.models.control_encoder import Residuals, add_residuals_of, check_counts, is_zero
from calotype.models.controlnet import ControlNetModel, ControlNetOutput
from calotype.models.model_group import ModelGroup


class MultiControlNetModel(ModelGroup):
    """ControlNets of one architecture, ``nets``, called as one with lists of pictures and of scales."""

    _member_class = ControlNetModel
    nets: nn.ModuleList

    def __init__(self, controlnets: list[ControlNetModel] | tuple[ControlNetModel, ...]) -> None:
        super().__init__(controlnets)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: list[torch.Tensor],
        conditioning_scale: list[float],
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[torch.Tensor], torch.Tensor]:
        """The sum of the residuals; ``controlnet_cond`` and ``conditioning_scale`` have an entry for each ControlNet.

        ControlNets whose scale is the number 0 are not run, except one if all are. The other arguments are those of
        :meth:`ControlNetModel.forward`, the same for all.
        """
        check_counts(len(self.nets), controlnet_cond=controlnet_cond, conditioning_scale=conditioning_scale)
        scales = list(conditioning_scale)
        used = [index for index, scale in enumerate(scales) if not is_zero(scale)] or [0]
        total: Residuals | None = None
        for index in used:
            residuals = self.nets[index](
                sample,
                timestep,
                encoder_hidden_states,
                controlnet_cond[index],
                scales[index],
                class_labels=class_labels,
                timestep_cond=timestep_cond,
                attention_mask=attention_mask,
                added_cond_kwargs=added_cond_kwargs,
                cross_attention_kwargs=cross_attention_kwargs,
                guess_mode=guess_mode,
                return_dict=False,
            )
            total = add_residuals_of(total, residuals)
        assert total is not None
        return ControlNetOutput(*total) if return_dict else total
