"""Where calotype differs from the reference on purpose: the case and why.

Keys are ``fnmatch`` patterns over the parity tests' case names (``area/Class/option=value,…``); a test whose case
matches asserts that the two really differ, so that an entry which has become untrue is found.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

DEVIATIONS: dict[str, str] = {
    "pipelines/StableDiffusionControlNetPAGPipeline/guess_mode=True": "the reference fails where perturbed attention "
    "meets guess mode with guidance; here the ControlNet sees the prompt's branch and its perturbation",
    "pipelines/*PAG*Pipeline/from_pipe;pag_applied_layers": "a pipeline for another task perturbs the layers that were "
    "chosen; the reference goes back to 'mid'",
    "pipelines/*ControlNet*/clip_sample=True": "latents are never clipped to [-1, 1]; the reference repairs such a "
    "scheduler configuration in its plain pipelines and forgets it in those with ControlNets",
    "pipelines/Kandinsky*/output_type=pt": "tensors are in [0, 1]; the reference's are in [-1, 1] in some "
    "of Kandinsky's pipelines and in [0, 1] in others",
    "pipelines/Kandinsky*/scheduler=Euler": "the reference's Kandinsky pipelines do not scale the denoiser's input as "
    "the scheduler asks",
    "pipelines/Kandinsky*Img2Img*/not square": "the reference exchanges height and width",
    "pipelines/Kandinsky*Img2Img*/one picture for two embeddings": "each has noise of its own; in the reference they "
    "share one",
    "pipelines/Kandinsky*Inpaint*/several pictures": "the reference keeps the first picture around the first mask in "
    "all of them",
    "pipelines/UnCLIPPipeline/guidance below 1": "a scale of 1 or less is no guidance, of the prior as of the decoder; "
    "the reference guides both if either scale is above 1",
    "pipelines/UnCLIP*/output_type=pt": "the reference gives arrays for whatever is not `pil`",
    "pipelines/StableUnCLIPImg2ImgPipeline/clip_skip": "the reference takes clip_skip and does not use it",
    "pipelines/LDMTextToImagePipeline/eta=1": "the reference draws the noise of steps without the generator",
    "pipelines/LDMTextToImagePipeline/scheduler=Euler": "the reference does not scale the denoiser's input as the "
    "scheduler asks, nor the first noise",
    "pipelines/LDMSuperResolutionPipeline/scheduler=Euler": "the reference scales the picture with the noise beside it",
    "pipelines/KandinskyImg2ImgPipeline/strength=0.001": "the reference counts the noise's step from the end of its "
    "table where the strength names one below 0",
    "pipelines/Kandinsky3Pipeline/masks of several prompts": "the reference gives the pictures of one prompt the masks "
    "of all prompts in turn",
    "pipelines/KandinskyCombinedPipeline/several pictures of several prompts": "the reference tells the decoder the "
    "prompts in turn, though the embeddings of one prompt stand together",
    "pipelines/KandinskyV22PriorEmb2EmbPipeline/interpolate": "the reference fails: its own call needs a picture",
    "pipelines/KandinskyPriorPipeline/interpolate/num_images_per_prompt=2": "the reference adds up all embeddings of a "
    "text as if they were so many texts",
    "pipelines/VideoToVideoSDPipeline/two videos": "the reference counts videos where it needs frames, and fails",
    "pipelines/VideoToVideoSDPipeline/latents": "the reference takes latents and does not use them",
    "pipelines/AnimateDiff*Pipeline/num_videos_per_prompt=2": "the reference takes the number and makes one video",
    "pipelines/AnimateDiff*ControlNetPipeline/guess_mode=True with guidance": "the reference fails: it adds residuals "
    "of one branch to both",
    "pipelines/AnimateDiff*ControlNetPipeline/several prompts": "the reference fails: it has control pictures for one "
    "video",
    "pipelines/AnimateDiff*Pipeline/free_noise;noise_type=repeat_context": "the first window's noise is repeated; the "
    "reference repeats what is given, and otherwise draws noise for all frames",
    "pipelines/AnimateDiffSparseControlNetPipeline/latents of pictures": "the likeliest ones; the reference draws "
    "them, without the generator",
    "pipelines/AnimateDiffVideoToVideo*Pipeline/free_init;strength=*": "each sampling goes the part of the way that "
    "strength says, from its level; in the reference the next goes a part of that part, from the last level",
    "pipelines/AnimateDiff*Pipeline/free_init;scheduler=Euler": "the first level multiplies the noise once; the "
    "reference multiplies by it twice and mixes it with noise of level 1, or finds no such level",
    "unets/UNetMotionModel/from_unet2d;addition_embed_type=text_time": "the reference leaves the embedding of size and "
    "pooled text random",
    "pipelines/TextToVideoZero*Pipeline/guidance_scale=1": "the reference fails, or pairs frames that are none of one "
    "video, since its attention takes every batch for a guided one",
    "pipelines/TextToVideoZeroPipeline/output_type=pil": "the reference gives arrays for whatever is not `latent`",
    "pipelines/TextToVideoZeroSDXLPipeline/guidance_rescale": "the reference takes it and does not use it",
    "pipelines/TextToVideoZeroSDXLPipeline/scheduler=Euler": "frames are noised to the level at which they go on; the "
    "reference adds the noise of variance-preserving latents to Euler's, which are not, and too little",
    "pipelines/I2VGenXLPipeline/posterior": "the reference encodes the picture without the generator, so that a seeded "
    "video differs from call to call; here that draw is determined by the generator, which it does not move on",
    "pipelines/I2VGenXLPipeline/several videos of several pictures": "as StableVideoDiffusionPipeline's",
    "pipelines/I2VGenXLPipeline/scaled picture": "a picture covers the frame; where rounding makes the reference's a "
    "pixel smaller, a black line is seen",
    "pipelines/I2VGenXLPipeline/pictures of several sizes": "each is scaled by itself; the reference scales all as the "
    "first",
    "unets/UNet3DConditionModel/class_labels": "the reference takes them and does not use them; here they are refused",
    "unets/UNet3DConditionModel/attention_mask": "as the one before",
    "lora/kohya/alphas that differ": "each layer has the alpha that the file gives it; with PEFT of today the "
    "reference gives the most frequent one to all",
    "lora/kohya/dora_scale": "the reference leaves the magnitudes of Kohya's files out and takes the rest for LoRA",
    "lora/text_encoder/lora_magnitude_vector": "the reference puts the weights' own norms in the place of a text "
    "encoder's magnitudes",
    "lora/lora_magnitude_vector after another adapter": "the order of adapters does not matter; the reference's "
    "magnitudes act on what adapters before have added, too",
    "lora/kohya/text_encoder fc1": "the reference leaves attention layers out where a text encoder has others beside "
    "them",
    "lora/set_adapters/blocks without transformers": "a block's weight is that of all of its layers; the reference's "
    "is that of transformers, and of what has the number of one in the same block",
    "models/*/load_attn_procs": "what is loaded acts; the reference reads Custom Diffusion's weights and computes "
    "without them",
    "lora/load after a call with a scale": "weights act at full strength; in the reference a text encoder's at the "
    "scale of the last call",
    "pipelines/StableVideoDiffusionPipeline/chunks across videos": "frames of two videos are never decoded together; "
    "in the reference a chunk that a video's end leaves unfilled goes on with the next, and the decoder mixes them",
    "pipelines/StableVideoDiffusionPipeline/tensor of another size": "the reference resizes PIL images for CLIP, and "
    "fails for tensors that are not as large as it reads",
    "pipelines/StableVideoDiffusionPipeline/several videos of several pictures": "the reference tells the denoiser one "
    "picture's embedding and shows it another's latents",
    "pipelines/StableVideoDiffusionPipeline/one frame": "the reference fails",
    "pipelines/StableVideoDiffusionPipeline/scheduler=EulerAncestral": "the reference draws the noise of steps without "
    "the generator",
    "pipelines/StableVideoDiffusionPipeline/pictures of several sizes": "the reference fails; here each is resized by "
    "itself, and in any mode",
    "pipelines/*/unload_ip_adapter": "what came with the adapter goes, an image encoder that was there before stays; "
    "in the reference the encoder always goes, and the LoRA of a FaceID adapter stays and is taken for the next one's",
    "pipelines/*/set_ip_adapter_scale": "one scale, also one by block, is for all adapters; the reference wants a list",
    # schedulers: after the case's name stand facts that the test computes (`;trailing-extra-point`)
    "schedulers/*;trailing-extra-point*": "the reference's trailing grid has N+1 points for 62 values of N, the last "
    "at timestep -1; here it has N",
    "schedulers/*;repeated-start*": "where rounding repeats the first timestep the reference begins at the second and "
    "fails at the end of the run",
    "schedulers/DPMSolverMultistepScheduler/*;third-order-sde*": "third-order SDE-DPM-Solver++ has a sign error in the "
    "reference (its curvature weight tends to -1 instead of 0 with the step), and sde-dpmsolver no branch at all",
    "schedulers/DDPMScheduler/*variance_type=fixed_large_log*;nan-in-reference*": "the reference takes the root of a "
    "logarithm",
    "schedulers/DDIMScheduler/*rescale_betas_zero_snr=True*/eta=1.0*;nan-in-reference*": "with all noise replaced, "
    "rounding makes the reference take the root of a negative number",
    "schedulers/DDIMScheduler/*rescale_betas_zero_snr=True*/eta=1.0*;no-noise-kept*": "as the one before, where what "
    "rounding leaves is positive: how much depends on the processor",
    "schedulers/*Ancestral*;nan-in-reference*": "as the next, where rounding makes the difference negative",
    "schedulers/*Ancestral*;steep*": "κ_down = κ'²/κ; the reference takes the root of a difference, which cancels "
    "where a step lowers κ more than tenfold",
    "schedulers/KDPM2DiscreteScheduler/*;steep*": "as the next",
    "schedulers/HeunDiscreteScheduler/*;steep*": "the slope is ε̂; the reference takes (x − x̂0)/κ, which cancels "
    "before a step that lowers κ more than tenfold",
    "schedulers/DPMSolverSinglestepScheduler/*solver_type=heun*;third-order-sde*": "as DPMSolverMultistepScheduler",
    "schedulers/DPMSolverMultistepInverseScheduler/*;third-order-sde*": "as DPMSolverMultistepScheduler",
    "schedulers/EDMDPMSolverMultistepScheduler/*;third-order-sde*": "the reference has no third order for the SDE",
    "schedulers/*DPMSolver*;nan-in-reference*": "an idle step (of no length) is 0/0 in the reference, and the noise "
    "of a step up the root of a negative number",
    "schedulers/DPMSolverMultistepInverseScheduler/*;steep*": "a step up that raises κ more than tenfold multiplies "
    "rounding by as much",
    "schedulers/DPMSolverMultistepInverseScheduler/*;repeated-steps*": "the reference drops repeated timesteps but "
    "not their levels, and ends too early",
    "schedulers/*;converted-flow*": "converted levels κ become a flow's κ/(κ + 1); of the reference's classes only "
    "UniPC does so, and only for karras",
    "schedulers/DPMSolverMultistepInverseScheduler/*;upward*": "the inverse goes up; the reference "
    "leaves flow levels descending",
    "schedulers/*;float32-coefficients*": "DEIS's and SA-Solver's coefficients cancel in float32 in the reference "
    "where levels are close",
    "schedulers/DEISMultistepScheduler/*;v-of-flow*": "v-prediction has no meaning for a flow's levels; the "
    "reference's ε̂ follows from its x̂0 there",
    "schedulers/UniPCMultistepScheduler/*;nan-in-reference*": "bh1, noise prediction or a second-order step to a "
    "final level of zero: infinity times zero in the reference, a finite limit here",
    "schedulers/from_config/DEISMultistepScheduler/DPMSolver*step*": "the reference translates `deis` only after "
    "refusing it for its final level",
    "schedulers/EulerDiscreteScheduler/get_velocity": "the reference reads the table at the step's index instead of "
    "its training step",
    "schedulers/LMSDiscreteScheduler/*;late-begin*": "the reference takes the order from the step's index, and the "
    "coefficients of slopes that a run which begins late does not have",
    "schedulers/SASolverScheduler/*;late-begin*": "the reference adds noise by the table's level of the truncated "
    "training step, not by the run's",
    "schedulers/SASolverScheduler/*algorithm_type=noise_prediction*thresholding=True*": "the reference fails: it "
    "indexes its table with the sample",
    "schedulers/DPMSolverMultistepScheduler/*prediction_type=flow_prediction*": "refused without use_flow_sigmas; the "
    "reference takes κ for the flow's σ",
    "schedulers/FlowMatchHeunDiscreteScheduler/*;steep*": "as HeunDiscreteScheduler, in σ",
    "schedulers/FlowMatch*/*shift_terminal=*;one-level*": "the reference divides by zero where the only level is 1",
    "schedulers/UnCLIPScheduler/*/steps=1": "the reference divides by zero for a run of one step",
    "schedulers/DDIMInverseScheduler/prediction_type=sample/defaults/steps=[0-9]": "a clean sample has no ε̂ beside x̂0; "
    "the reference divides by zero, here it is refused",
    "schedulers/DDIMInverseScheduler/prediction_type=sample/defaults/steps=[0-9][0-9]": "as the one before",
    "schedulers/KarrasVeScheduler/*;steep*": "the slope is −F; the reference takes (x − x̂0)/σ, which cancels after a "
    "step that lowers σ more than tenfold",
    "schedulers/KarrasVeScheduler/*/steps=1;nan-in-reference": "the reference divides by zero for a run of one step",
    "schedulers/DDIMParallelScheduler/set_alpha_to_one=False/batch_step_no_noise": "the reference's last step of a "
    "batch ends at no noise, its other steps at the first trained level",
    "pipelines/*/from_pipe;torch_dtype": "shared models keep their type; the reference converts them to float32, the "
    "other pipeline's too, unless told otherwise",
    "pipelines/*Img2ImgPipeline/image;mode=*": "pictures of any mode become RGB; the reference takes the four channels "
    "of RGBA for latents and fails at one channel",
    "unets/UNet2DModel/ncsnpp/timestep=1.75": "the reference cuts a noise level given as a Python number to an integer",
    "files/missing-key": "the reference warns and computes with weights that no file holds",
    "files/superfluous-key": "the reference warns and goes on, though the file is of another model",
    "files/pickle": "the reference loads pickles unasked where there are no safetensors",
    "files/unknown-argument": "the reference ignores arguments that it does not know, misspelt ones among them",
    "files/stale-index": "the reference leaves the index of an older sharded save, and then cannot load the folder",
    "vae/AutoencoderTiny/tiling;two-stages": "the reference takes two to the number of colours for the scale of the "
    "latents and fails for other depths",
    "vae/AutoencoderTiny/gradient-checkpointing": "the reference leaves out the scaling of the pictures to [0, 1]",
    "controlnets/ControlNetModel/class_time;another-activation": "the reference embeds a class's number with SiLU "
    "whatever act_fn is, which is not what the U-Net does whose encoder it copies",
    "controlnets/ControlNetModel/text;projected": "the reference has the projection of the context and does not use it",
    "controlnets/*/text_image": "the reference has the embedding of text and picture and does not use it",
    "controlnets/ControlNetUnionModel/from_unet/add_embedding.*": "the reference leaves these weights random",
    "files/MultiAdapter/3": "the reference writes the third adapter where it does not look for it",
    "safety-checker/input": "the reference blackens the pictures of its caller in place",
    "pipelines/StableDiffusionXLControlNetUnion*Pipeline/guess_mode=True": "the reference fails with guidance: it "
    "tells the network the kinds of pictures for both branches, and shows it one",
    "pipelines/StableDiffusionXLControlNetUnionInpaintPipeline/padding_mask_crop": "the reference refuses it whatever "
    "is given: it makes the control pictures a list and then wants them to be one",
    "pipelines/StableDiffusionXLControlNetUnion*Pipeline/from_pipe;*": "without it the reference looks for "
    "StableDiffusionXLUnionPipeline, which there is not, and with it takes the pipeline of another ControlNet",
    "pipelines/StableDiffusionXL*Pipeline/add_watermarker;low picture": "a picture of fewer than 256² pixels "
    "cannot be marked and stays as it is; the reference fails at the end of the call if it is at least 256 wide",
    "pipelines/StableDiffusionXL*InpaintPipeline/latents_mean": "the reference decodes by the mean and deviation of "
    "the channels but encodes without, so that what the mask keeps changes",
    "pipelines/StableDiffusionXL*InpaintPipeline/denoising_end": "what the mask keeps is at the noise level at which "
    "the call ends; in the reference it is clean in the midst of noise",
}


def deviation(case: str) -> str | None:
    """The reason why this case may differ from the reference, or None."""
    for pattern, reason in DEVIATIONS.items():
        if fnmatchcase(case, pattern):
            return reason
    return None
