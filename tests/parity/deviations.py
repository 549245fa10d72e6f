"""Where calotype differs from the reference on purpose: the case and why.

Keys are ``fnmatch`` patterns over the parity tests' case names (``area/Class/option=value,…``); a test whose case
matches asserts that the two really differ, so that an entry which has become untrue is found.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

DEVIATIONS: dict[str, str] = {
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
    "schedulers/*Ancestral*;nan-in-reference*": "as the next, where rounding makes the difference negative",
    "schedulers/*Ancestral*;steep*": "κ_down = κ'²/κ; the reference takes the root of a difference, which cancels where "
    "a step lowers κ more than tenfold",
    "schedulers/HeunDiscreteScheduler/*;steep*": "the slope is ε̂; the reference takes (x − x̂0)/κ, which cancels before a "
    "step that lowers κ more than tenfold",
    "schedulers/DPMSolverMultistepScheduler/*prediction_type=flow_prediction*": "refused without use_flow_sigmas; the "
    "reference takes κ for the flow's σ",
    "unets/UNet2DModel/ncsnpp/timestep=1.75": "the reference cuts a noise level given as a Python number to an integer",
    "files/missing-key": "the reference warns and computes with weights that no file holds",
    "files/superfluous-key": "the reference warns and goes on, though the file is of another model",
    "files/pickle": "the reference loads pickles unasked where there are no safetensors",
    "files/unknown-argument": "the reference ignores arguments that it does not know, misspelt ones among them",
    "files/stale-index": "the reference leaves the index of an older sharded save, and then cannot load the folder",
    "vae/AutoencoderTiny/tiling;two-stages": "the reference takes two to the number of colours for the scale of the "
    "latents and fails for other depths",
    "vae/AutoencoderTiny/gradient-checkpointing": "the reference leaves out the scaling of the pictures to [0, 1]",
    "safety-checker/input": "the reference blackens the pictures of its caller in place",
}


def deviation(case: str) -> str | None:
    """The reason why this case may differ from the reference, or None."""
    for pattern, reason in DEVIATIONS.items():
        if fnmatchcase(case, pattern):
            return reason
    return None
