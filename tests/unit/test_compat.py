"""Programs written for the reference, answered with calotype's names, each in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from calotype.compat.names import is_module, lacking, lookup


def run(*arguments: str, ok: bool = True) -> str:
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert (result.returncode == 0) is ok, result.stderr
    return result.stdout if ok else result.stderr


SCRIPT = """
import sys

import diffusers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.schedulers import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler as again
from diffusers.utils import BaseOutput, check_min_version, is_flashpack_available, is_torch_available
from diffusers.utils import load_image, logging, make_image_grid
from diffusers.utils.torch_utils import randn_tensor

from diffusers.schedulers import *

import helper_beside_the_script

check_min_version("0.42.0")


class Kept(ConfigMixin):
    config_name = "kept.json"

    @register_to_config
    def __init__(self, size=3):
        self.size = size


import calotype

assert __name__ == "__main__"
assert StableDiffusionPipeline is calotype.StableDiffusionPipeline
assert diffusers.UNet2DConditionModel is UNet2DConditionModel is calotype.UNet2DConditionModel
assert again is DDIMScheduler is calotype.DDIMScheduler
assert diffusers.utils.load_image is load_image
assert diffusers.__version__ == "0.42.1"
assert is_torch_available() and not is_flashpack_available()
assert LCMScheduler is calotype.LCMScheduler
assert not hasattr(diffusers, "NoSuchPipeline")
assert Kept(size=5).config.size == 5
assert {module.split(".")[0] for module in sys.modules if "stable_diffusion" in module} == {"calotype", "diffusers"}
assert not any(hasattr(module, "__file__") for name, module in sys.modules.items() if name.startswith("diffusers"))
print(*sys.argv[1:], helper_beside_the_script.VALUE)
"""


def test_a_script_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper_beside_the_script.py").write_text("VALUE = 'helped'")
    assert run("-m", "calotype.compat", str(tmp_path / "script.py"), "--steps", "3") == "--steps 3 helped\n"


REFUSED = {
    "from diffusers import FluxPipeline": "calotype has nothing for diffusers.FluxPipeline",
    "import diffusers.loaders": "calotype has nothing for diffusers.loaders",
    "from diffusers.schedulers import rescale_noise_cfg": "nothing for diffusers.schedulers.rescale_noise_cfg",
    "from diffusers import DDIMSheduler": "The nearest name is DDIMScheduler",
}


def test_a_name_that_is_not_here_is_named() -> None:
    lines = ["import calotype.compat", "calotype.compat.install()"]
    for line in REFUSED:
        lines += ["try:", f"    {line}", "except ImportError as error:", "    print(error)"]
    said = run("-c", "\n".join(lines)).splitlines()
    assert len(said) == len(REFUSED)
    for found, expected in zip(said, REFUSED.values(), strict=True):
        assert expected in found


def test_installing_and_uninstalling(tmp_path: Path) -> None:
    """An installed reference, here a stand-in for one, is shadowed and found again."""
    (tmp_path / "diffusers" / "utils").mkdir(parents=True)
    (tmp_path / "diffusers" / "__init__.py").write_text("DDIMScheduler = 'theirs'")
    (tmp_path / "diffusers" / "utils" / "__init__.py").write_text("load_image = 'theirs'")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import diffusers as theirs
import diffusers.utils
assert diffusers.utils.load_image == theirs.DDIMScheduler == "theirs"
import calotype, calotype.compat, calotype.utils
calotype.compat.install()
calotype.compat.install()
import diffusers as ours
from diffusers import DDIMScheduler
assert ours is not theirs and DDIMScheduler is calotype.DDIMScheduler
from diffusers.utils import load_image
assert load_image is calotype.utils.load_image
calotype.compat.uninstall()
calotype.compat.uninstall()
import diffusers as again
assert again is theirs and again.DDIMScheduler == "theirs"
from diffusers.utils import load_image
assert load_image == "theirs"
"""
    run("-c", code, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"), [((), "usage"), (("nowhere.py",), "There is no script nowhere.py.")]
)
def test_the_command_refuses(arguments: tuple[str, ...], says: str) -> None:
    assert says in run("-m", "calotype.compat", *arguments, ok=False)


def test_an_error_in_the_script_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit('the script failed')")
    assert "the script failed" in run("-m", "calotype.compat", str(tmp_path / "script.py"), ok=False)


@pytest.mark.parametrize(
    ("path", "answered"),
    [
        ("diffusers", True),
        ("diffusers.models.unets.unet_2d_condition", True),
        ("diffusers.models.attention_processor", True),
        ("diffusers.pipelines.controlnet.pipeline_controlnet", True),
        ("diffusers.pipelines.stable_diffusion.rescale_noise_cfg", False),
        ("diffusers.utils.is_torch_available", False),
        ("diffusers.training_utils", False),
    ],
)
def test_modules(path: str, answered: bool) -> None:
    assert is_module(path) is answered


def test_a_private_name_is_not_looked_up() -> None:
    with pytest.raises(LookupError):
        lookup("diffusers", "_HOME")
    assert "diffusers.models.Nothing" in lacking("diffusers.models", "Nothing")
