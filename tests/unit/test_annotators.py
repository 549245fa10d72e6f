"""Control pictures, on scenes of the pocket world, whose edges and depths are known exactly."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from scipy.ndimage import binary_dilation

from calotype import annotators
from calotype.core.errors import InputError
from calotype.pocket.renderer import Rendering, render
from calotype.pocket.scene import ObjectSpec, make_scene

SIDE = 128


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def scene() -> Rendering:
    return render(make_scene([ObjectSpec("sphere", "red"), ObjectSpec("cube", "blue")], sky="night"), SIDE)


@pytest.fixture(scope="module")
def picture(scene: Rendering) -> PIL.Image.Image:
    return PIL.Image.fromarray((scene.rgb[0].permute(1, 2, 0) * 255).round().byte().numpy())


def grey(image: PIL.Image.Image) -> np.ndarray:
    """The one channel that all three are."""
    assert image.mode == "RGB"
    values = np.asarray(image)
    assert np.array_equal(values[..., 0], values[..., 1])
    assert np.array_equal(values[..., 0], values[..., 2])
    return values[..., 0]


def covered(known: np.ndarray, drawn: np.ndarray, reach: int = 2) -> float:
    """The share of known edges that have a drawn one near."""
    return float((known & binary_dilation(drawn, iterations=reach)).sum() / known.sum())


@pytest.mark.parametrize(("name", "least"), [("canny", 0.75), ("lineart", 0.9), ("scribble", 0.8)])
def test_lines_follow_the_objects_outlines(
    scene: Rendering, picture: PIL.Image.Image, name: str, least: float
) -> None:
    drawn = getattr(annotators, name)(picture)
    assert drawn.size == picture.size
    lines = grey(drawn) > 64
    outlines = scene.edges[0, 0].numpy() > 0
    assert outlines.sum() > 100
    assert covered(outlines, lines) > least
    assert lines.mean() < 0.25
    inside = scene.object_id[0, 0].numpy() == 1
    inside &= ~binary_dilation(~inside, iterations=6)
    assert inside.sum() > 100
    assert lines[inside].mean() < 0.05  # the sphere is smooth


def test_canny_is_opencv_s_and_its_thresholds_matter(picture: PIL.Image.Image) -> None:
    import cv2

    assert np.array_equal(grey(annotators.canny(picture)), cv2.Canny(np.asarray(picture), 100, 200))
    few, many = (grey(annotators.canny(picture, *at)) for at in ((300, 400), (20, 40)))
    assert (few > 0).sum() < (many > 0).sum()
    assert set(np.unique(many)) == {0, 255}


def test_wider_lines_cover_more(picture: PIL.Image.Image) -> None:
    for draw in (annotators.lineart, annotators.scribble):
        thin, wide = (grey(draw(picture.resize((256, 192)), width)).mean() for width in (1.0, 3.0))
        assert wide > 1.3 * thin
    assert set(np.unique(grey(annotators.scribble(picture)))) == {0, 255}


def test_a_step_is_drawn_on_its_dark_side() -> None:
    values = np.full((64, 64, 3), 230, np.uint8)
    values[:, 32:] = 60
    lines = grey(annotators.lineart(PIL.Image.fromarray(values)))
    assert (lines[:, 32] > 128).all()
    assert not lines[:, :32].any()
    assert not lines[:, 40:].any()
    assert not grey(annotators.lineart(PIL.Image.new("RGB", (40, 30), "grey"))).any()


def test_whatever_load_image_takes_is_taken(picture: PIL.Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    picture.save(path)
    expected = annotators.lineart(picture).tobytes()
    assert annotators.lineart(str(path)).tobytes() == expected
    assert annotators.lineart(path).tobytes() == expected
    assert annotators.canny(picture.convert("RGBA")).tobytes() == annotators.canny(picture).tobytes()
    sideways = picture.resize((64, 48)).convert("L")
    sideways.getexif()[0x0112] = 6
    sideways.save(tmp_path / "sideways.jpg", exif=sideways.getexif())
    assert annotators.scribble(tmp_path / "sideways.jpg").size == (48, 64)


def test_bad_arguments_are_named(picture: PIL.Image.Image) -> None:
    with pytest.raises(InputError, match="low_threshold is 200 and high_threshold 100"):
        annotators.canny(picture, 200, 100)
    for width in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="positive number"):
            annotators.lineart(picture, width)
    with pytest.raises(InputError, match="load_image takes a path"):
        annotators.scribble(np.zeros((8, 8, 3)))
    with pytest.raises(AttributeError, match="no 'hed'"):
        annotators.hed  # noqa: B018


def test_without_opencv_canny_says_how_to_get_it(
    picture: PIL.Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cv2":
            raise ImportError(name)
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"OpenCV.*calotype\[annotators\]"):
        annotators.canny(picture)


# -- depth -----------------------------------------------------------------------------------------------------


class Known(torch.nn.Module):
    """Stands for a model that predicts a scene's true disparity, or its true distance."""

    def __init__(self, depth: torch.Tensor, metric: bool) -> None:
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.depth = depth
        self.config = type("config", (), {"model_type": "zoedepth" if metric else "dpt"})()
        self.metric = metric

    def forward(self, pixel_values: torch.Tensor) -> Any:
        from transformers.modeling_outputs import DepthEstimatorOutput

        return DepthEstimatorOutput(predicted_depth=self.depth if self.metric else 1 / self.depth)


@pytest.mark.parametrize("metric", [False, True])
def test_depth_is_the_scene_s_disparity(scene: Rendering, picture: PIL.Image.Image, metric: bool) -> None:
    from transformers import DPTImageProcessorPil

    model = Known(scene.depth[:, 0], metric)
    seen = grey(annotators.depth(picture, model, DPTImageProcessorPil()))
    disparity = 1 / scene.depth[0, 0]
    expected = 255 * (disparity - disparity.min()) / (disparity.max() - disparity.min())
    np.testing.assert_allclose(seen, expected.numpy(), atol=1)
    assert seen[:8].mean() < 20 < 150 < seen[-8:].mean()  # the sky is far, the floor in front near


@pytest.fixture(scope="module")
def estimator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random DPT with its processor."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
        readout_type="ignore", is_hybrid=False, head_in_index=-1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "dpt"
    model = DPTForDepthEstimation(config)
    torch.nn.init.normal_(model.head.head[4].bias, 5.0)
    model.save_pretrained(folder)
    DPTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_depth_by_a_model_s_name_or_the_model(estimator: Path, picture: PIL.Image.Image) -> None:
    from transformers import DPTForDepthEstimation, DPTImageProcessorPil

    small = picture.resize((72, 40))
    by_name = annotators.depth(small, estimator, device="cpu")
    assert by_name.size == (72, 40)
    assert (grey(by_name).min(), grey(by_name).max()) == (0, 255)
    model, processor = (
        cls.from_pretrained(estimator) for cls in (DPTForDepthEstimation, DPTImageProcessorPil)
    )
    assert annotators.depth(small, model.eval(), processor).tobytes() == by_name.tobytes()
    with pytest.raises(InputError, match="processor that belongs to the DPTForDepthEstimation"):
        annotators.depth(small, model)


def test_no_depth_is_refused(picture: PIL.Image.Image) -> None:
    from transformers import DPTImageProcessorPil

    for value in (1.0, float("nan")):
        model = Known(torch.full((1, 8, 8), value), False)
        with pytest.raises(InputError, match="same depth everywhere, or NaN"):
            annotators.depth(picture, model, DPTImageProcessorPil())


# -- poses -----------------------------------------------------------------------------------------------------

STANDING = [
    (64, 16), (64, 36), (44, 36), (36, 60), (30, 84), (84, 36), (92, 60), (98, 84), (52, 84), (50, 104),
    (48, 124), (76, 84), (78, 104), (80, 124), (60, 12), (68, 12), (56, 14), (72, 14),
]  # fmt: skip
COLORS = [
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85),
]  # fmt: skip


def test_joints_and_limbs_have_openpose_s_colours() -> None:
    drawn = annotators.pose([STANDING], (128, 128))
    assert (drawn.size, drawn.mode) == ((128, 128), "RGB")
    for joint, color in zip(STANDING[:14], COLORS, strict=False):
        assert drawn.getpixel(joint) == color
    assert drawn.getpixel((54, 36)) == (153, 0, 0)  # neck to right shoulder
    assert drawn.getpixel((74, 36)) == (153, 51, 0)  # neck to left shoulder
    assert drawn.getpixel((77, 94)) == (0, 102, 153)  # left hip to left knee
    assert drawn.getpixel((64, 26)) == (0, 0, 153)  # neck to nose
    assert drawn.getpixel((10, 10)) == (0, 0, 0)


def test_coco_keypoints_get_a_neck() -> None:
    order = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
    coco = np.array([STANDING[i] for i in order], float)
    expected = annotators.pose([STANDING], (128, 128)).tobytes()
    assert annotators.pose(coco[None], (128, 128)).tobytes() == expected
    scored = np.concatenate([coco, np.ones((17, 1))], axis=1)
    assert annotators.pose([scored], (128, 128)).tobytes() == expected


def test_what_is_not_seen_is_not_drawn() -> None:
    def without(joint: Any) -> np.ndarray:
        return np.asarray(annotators.pose([[*STANDING[:4], joint, *STANDING[5:]]], (128, 128)))

    assert (without((*STANDING[4], 0.9))[84, 30] == COLORS[4]).all()
    for hidden in (None, (*STANDING[4], 0.1), (float("nan"), 84)):
        drawn = without(hidden)
        assert not drawn[72:90, 24:36].any()  # neither the wrist nor the forearm
        assert (drawn[60, 36] == COLORS[3]).all()
    assert not np.asarray(annotators.pose([], (16, 8))).any()


def test_poses_in_other_forms_are_refused() -> None:
    with pytest.raises(InputError, match="18 joints .* or 17 .*, not 5"):
        annotators.pose([STANDING[:5]], (64, 64))
    with pytest.raises(InputError, match=r"A joint is \(x, y\)"):
        annotators.pose([[(1, 2, 3, 4), *STANDING[1:]]], (64, 64))
    with pytest.raises(InputError, match="0x64"):
        annotators.pose([STANDING], (0, 64))


# -- inpainting ------------------------------------------------------------------------------------------------


def test_the_masked_pixels_are_marked(picture: PIL.Image.Image) -> None:
    mask = PIL.Image.new("L", picture.size)
    mask.paste(255, (10, 20, 50, 60))
    mask.paste(100, (60, 20, 80, 60))  # less than half
    condition = annotators.make_inpaint_condition(picture, mask)
    assert condition.shape == (1, 3, SIDE, SIDE)
    assert condition.dtype == torch.float32
    assert (condition[..., 20:60, 10:50] == -1).all()
    kept = np.ones((SIDE, SIDE), bool)
    kept[20:60, 10:50] = False
    expected = np.asarray(picture, np.float32).transpose(2, 0, 1)[:, kept] / 255
    assert np.array_equal(condition[0].numpy()[:, kept], expected)
    with pytest.raises(InputError, match="128x128 and the mask 8x8"):
        annotators.make_inpaint_condition(picture, mask.resize((8, 8)))
