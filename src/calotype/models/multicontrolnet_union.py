"""Several ControlNet Unions at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from calotype.models.control_encoder import Residuals, add_residuals_of, check_counts, is_zero
from calotype.models.controlnet import ControlNetOutput
from calotype.models.controlnet_union import ControlNetUnionModel
from calotype.models.model_group import ModelGroup


class MultiControlNetUnionModel(ModelGroup):
    """ControlNet Unions of one architecture, ``nets``, called as one with lists of what each takes."""

    _member_class = ControlNetUnionModel
    nets: nn.ModuleList

    def __init__(self, controlnets: list[ControlNetUnionModel] | tuple[ControlNetUnionModel, ...]) -> None:
        super().__init__(controlnets)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: list[torch.Tensor],
        control_type: list[torch.Tensor],
        control_type_idx: list[list[int]],
        conditioning_scale: list[float],
        class_labels: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[list[torch.Tensor] | None, torch.Tensor | None]:
        """The sum of the residuals; lists have an entry for each ControlNet, that of ``controlnet_cond`` is a list too.

        ControlNets whose scale is the number 0 are not run; if all are, both results are None. The other arguments
        are those of :meth:`ControlNetUnionModel.forward`, the same for all.
        """
        check_counts(
            len(self.nets),
            controlnet_cond=controlnet_cond,
            control_type=control_type,
            control_type_idx=control_type_idx,
            conditioning_scale=conditioning_scale,
        )
        total: Residuals | None = None
        for index, net in enumerate(self.nets):
            if is_zero(conditioning_scale[index]):
                continue
            residuals = net(
                sample,
                timestep,
                encoder_hidden_states,
                controlnet_cond[index],
                control_type[index],
                control_type_idx[index],
                conditioning_scale[index],
                class_labels=class_labels,
                timestep_cond=timestep_cond,
                attention_mask=attention_mask,
                added_cond_kwargs=added_cond_kwargs,
                cross_attention_kwargs=cross_attention_kwargs,
                from_multi=True,
                guess_mode=guess_mode,
                return_dict=False,
            )
            total = add_residuals_of(total, residuals)
        down, mid = total or (None, None)
        return ControlNetOutput(down, mid) if return_dict else (down, mid)
