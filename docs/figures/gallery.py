"""docs/gallery.md and its pictures: every task of the pocket family, what goes in and what comes out.

    python docs/figures/gallery.py [--device cpu] [--rows 4] [--family FOLDER] [--docs docs]

Also docs/images/tasks.webp, all tasks at a glance. Scenes are fresh renders of the held-out split. Members that are not
installed are left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from benchmarks._pocket_family.drawing import Options, draw  # noqa: E402
from benchmarks._pocket_family.tasks import Bench, disparity_pictures, holes  # noqa: E402
from benchmarks._pocket_family.world import as_pictures, sentences  # noqa: E402

from calotype.annotators import canny  # noqa: E402
from calotype.core.files import replacing, write_text  # noqa: E402
from calotype.pipelines.load import default_device  # noqa: E402
from calotype.pocket.labels import painted  # noqa: E402
from calotype.pocket.prompts import prompts  # noqa: E402
from calotype.utils import contact_sheet  # noqa: E402

Cells = list[tuple[Any, str]]
"""A row of a sheet: pictures and the words under them."""


@dataclass(frozen=True)
class Section:
    """A task: its heading, what is said of it, the lines that do it and the function that shows it."""

    member: str
    title: str
    about: str
    code: str
    rows: Callable[[Bench], list[Cells]]
    glance: tuple[int, int] | None = (0, -1)
    """The two pictures of its first row that stand for it among all tasks; None for what is no task of its own."""

    @property
    def file(self) -> str:
        return "-".join(self.title.lower().split()) + ".webp"


def _from_words(bench: Bench) -> list[Cells]:
    asked = [p.text for p in prompts("heldout", 3 * bench.options.count, bench.options.seed)]
    images = draw(bench.options.load("pocket"), asked, bench.options)
    cells = list(zip(images, asked, strict=True))
    return [cells[i : i + 3] for i in range(0, len(cells), 3)]


def _edited(bench: Bench, strength: float = 0.6) -> list[Cells]:
    asked = [p.text for p in sentences(bench.world.scenes, bench.options.seed, recolor=True)]
    pipe = bench.options.load("pocket")
    images = draw(pipe, asked, bench.options, each={"image": bench.pictures}, strength=strength)
    return _rows([(bench.pictures, "given"), (images, asked)])


def _rows(columns: list[tuple[Any, Any]]) -> list[Cells]:
    """Columns of pictures, each with one text or a text for each, as rows."""
    count = len(columns[0][0])
    filled = [(images, [text] * count if isinstance(text, str) else text) for images, text in columns]
    return [[(images[i], texts[i]) for images, texts in filled] for i in range(count)]


def _filled(bench: Bench) -> list[Cells]:
    asked = holes(bench.world, bench.options.seed)
    masks = as_pictures(torch.from_numpy(np.stack([hole.mask(128) for hole in asked])) / 255)
    texts = [hole.prompt.text for hole in asked]
    images = draw(
        bench.options.load("pocket-inpaint"),
        texts,
        bench.options,
        each={"image": bench.pictures, "mask_image": masks},
        strength=1.0,
        composite=True,
    )
    return _rows([(bench.pictures, "given"), (masks, "mask"), (images, texts)])


def _in_depth(bench: Bench) -> list[Cells]:
    asked = [p.text for p in sentences(bench.world.scenes, bench.options.seed, recolor=True)]
    pipe = bench.options.load("pocket-depth")
    images = draw(pipe, asked, bench.options, each={"image": bench.pictures}, strength=1.0)
    near = bench.depth(bench.pictures)
    low, high = near.amin((1, 2), keepdim=True), near.amax((1, 2), keepdim=True)
    shown = as_pictures((near - low) / (high - low).clamp_min(1e-6))
    return _rows([(bench.pictures, "given"), (shown, "its depth, as estimated"), (images, asked)])


def _steered(kind: str, picture: Callable[[Bench], list[Any]]) -> Callable[[Bench], list[Cells]]:
    def rows(bench: Bench) -> list[Cells]:
        control = picture(bench)
        asked = [p.text for p in sentences(bench.world.scenes, bench.options.seed, recolor=True)]
        pipe = bench.options.load(f"pocket-controlnet-{kind}")
        images = draw(pipe, asked, bench.options, control=control)
        return _rows([(bench.pictures, "from this"), (control, "the control"), (images, asked)])

    return rows


def _quick(bench: Bench) -> list[Cells]:
    asked = [p.text for p in prompts("heldout", bench.options.count, bench.options.seed)]
    pipe = bench.options.load("pocket-turbo")
    few = {name: pipe.usual({})[name] for name in ("num_inference_steps", "guidance_scale")}
    quick = draw(pipe, asked, bench.options, **few)
    slow = draw(bench.options.load("pocket"), asked, bench.options)
    return _rows([(quick, [f"{text}, 4 steps" for text in asked]), (slow, "pocket, 20 steps")])


def _from_nothing(bench: Bench) -> list[Cells]:
    pipe, count = bench.options.load("pocket-unconditional"), 4 * bench.options.count
    generator = [torch.Generator().manual_seed(seed) for seed in range(count)]
    images = pipe(batch_size=count, generator=generator, num_inference_steps=50).images
    return [[(image, "") for image in images[i : i + 4]] for i in range(0, count, 4)]


def _enlarged(bench: Bench) -> list[Cells]:
    small = [picture.resize((32, 32), 3) for picture in bench.pictures]
    asked = [p.text for p in sentences(bench.world.scenes, bench.options.seed)]
    pipe = bench.options.load("pocket-upscale")
    usual = pipe.usual({"image": small[0]})
    few = {name: usual[name] for name in ("num_inference_steps", "guidance_scale")}
    images = draw(pipe, asked, bench.options, each={"image": small}, **few)
    blocks = [one.resize((128, 128), 0) for one in small]
    return _rows([(blocks, "given, 32 pixels"), (images, asked), (bench.pictures, "as it was")])


def _xl(bench: Bench) -> list[Cells]:
    asked = [p.text for p in prompts("heldout", bench.options.count, bench.options.seed)]
    pipe = bench.options.load("pocket-xl")
    whole = draw(pipe, asked, bench.options)
    left, right, small = (
        draw(pipe, asked, bench.options, original_size=(side, side), crops_coords_top_left=corner)
        for side, corner in ((192, (32, 0)), (192, (32, 64)), (48, (0, 0)))
    )
    return _rows(
        [
            (whole, asked),
            (left, "of 192 pixels, cropped at the left"),
            (right, "the same, cropped 64 to the right"),
            (small, "of 48 pixels, blown up"),
        ]
    )


def _refined(bench: Bench) -> list[Cells]:
    asked = [p.text for p in prompts("heldout", bench.options.count, bench.options.seed)]
    pipe, refiner = (bench.options.load(name) for name in ("pocket-xl", "pocket-xl-refiner"))
    whole = draw(pipe, asked, bench.options)
    generator = [torch.Generator().manual_seed(bench.options.seed + i) for i in range(len(asked))]
    usual = {"num_inference_steps": bench.options.steps, "guidance_scale": bench.options.guidance}
    latents = pipe(asked, generator=generator, denoising_end=0.8, output_type="latent", **usual).images
    images = refiner(asked, image=latents, denoising_start=0.8, **usual).images
    return _rows([(whole, asked), (images, "the last fifth by the refiner")])


def _through_tiny(bench: Bench) -> list[Cells]:
    asked = [p.text for p in prompts("heldout", bench.options.count, bench.options.seed)]
    tiny = draw(bench.options.load("pocket-tiny-vae"), asked, bench.options)
    whole = draw(bench.options.load("pocket"), asked, bench.options)
    return _rows([(tiny, asked), (whole, "with the whole autoencoder")])


_CONTROL = 'pipe = calotype.load("pocket-controlnet-{0}")\npipe("a red ball on grass", control={0}_picture)'
SECTIONS = (
    Section(
        "pocket", "Text to image", "Pairs of shape and colour that no training saw.",
        'pipe = calotype.load("pocket")\npipe("a red ball to the left of a blue cube on grass at sunset")', _from_words,
    ),
    Section(
        "pocket", "Image to image", "What the words say, laid out as the picture is.",
        'pipe = calotype.load("pocket")\npipe("a red ball on grass", image=photo, strength=0.6)', _edited,
    ),
    Section(
        "pocket-inpaint", "Inpainting", "What the mask leaves out stays, bit for bit.",
        'pipe = calotype.load("pocket-inpaint")\n'
        'pipe("a red ball", image=photo, mask_image=mask, composite=True)', _filled,
    ),
    Section(
        "pocket-depth", "Depth to image", "The depth is estimated by the family's own estimator.",
        'pipe = calotype.load("pocket-depth")\npipe("a red ball on grass", image=photo, strength=1.0)', _in_depth,
    ),
    Section(
        "pocket-controlnet-canny", "ControlNet for edges", "Edges as `calotype.annotators.canny` draws them.",
        _CONTROL.format("canny"), _steered("canny", lambda bench: [canny(one) for one in bench.pictures]),
    ),
    Section(
        "pocket-controlnet-depth", "ControlNet for depth", "White is near, black is far.",
        _CONTROL.format("depth"), _steered("depth", lambda bench: disparity_pictures(bench.world.depth)),
    ),
    Section(
        "pocket-controlnet-segmentation", "ControlNet for segments",
        "A colour for the sky, the floor and each shape.", _CONTROL.format("segmentation"),
        _steered("segmentation", lambda bench: as_pictures(painted(bench.world.segments))),
    ),
    Section(
        "pocket-turbo", "Few steps", "Latent consistency: four steps without guidance.",
        'pipe = calotype.load("pocket-turbo")\npipe("a red ball on grass")', _quick,
    ),
    Section(
        "pocket-upscale", "Upscaling", "Four times as large.",
        'pipe = calotype.load("pocket-upscale")\npipe("a red ball on grass", image=small)', _enlarged, (0, 1),
    ),
    Section(
        "pocket-unconditional", "Unconditional",
        "Pixels from noise alone: floors, skies and light are as in the scenes. Some objects are whole solids, many\n"
        "are no shape of the world.",
        'pipe = calotype.load("pocket-unconditional")\npipe(batch_size=4, num_inference_steps=50)', _from_nothing,
    ),
    Section(
        "pocket-xl", "Size of the original",
        "SDXL's shape: a second text encoder, and a denoiser that is told the size of the original and the corner of\n"
        "the crop. Objects go where the crop puts them and are often misshapen there; what is blown up is softer,\n"
        "and seldom so much that it strikes the eye.",
        'pipe = calotype.load("pocket-xl")\n'
        'pipe("a red ball on grass", original_size=(192, 192), crops_coords_top_left=(32, 0))', _xl, (0, 1),
    ),
    Section(
        "pocket-xl-refiner", "Refiner",
        "Another model for the last fifth of the noise, which is told a score. It keeps what the first one drew;\n"
        "plain surfaces come out rougher, not better.",
        'latents = calotype.load("pocket-xl")(prompt, denoising_end=0.8, output_type="latent").images\n'
        'calotype.load("pocket-xl-refiner")(prompt, image=latents, denoising_start=0.8)', _refined, None,
    ),
    Section(
        "pocket-tiny-vae", "A tiny autoencoder", "The same latents, decoded by a fraction of the work.",
        'pipe = calotype.load("pocket-tiny-vae")\npipe("a red ball on grass")', _through_tiny,
    ),
)  # fmt: skip


def _save(image: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image.save(temporary, format="WEBP", quality=82, method=6)


def _sheet(rows: list[Cells]) -> Any:
    cells = [cell for row in rows for cell in row]
    return contact_sheet(
        [image for image, _ in cells], [text for _, text in cells], columns=len(rows[0]), cell=192
    )


def page(shown: list[Section]) -> str:
    """The text of docs/gallery.md."""
    parts = [
        "# Gallery\n\nEvery task of the bundled family. `make gallery` draws this page again: the scenes that go in\n"
        "are fresh renders, and no training saw their pairs of shape and colour."
    ]
    for section in shown:
        parts.append(
            f"## {section.title}\n\n{section.about}\n\n```python\n{section.code}\n```\n\n"
            f"![{section.title}](images/gallery/{section.file})"
        )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw docs/gallery.md and its pictures.")
    parser.add_argument("--device", default=str(default_device()))
    parser.add_argument("--rows", type=int, default=4, help="examples of each task")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--family", type=Path, help="a folder of members in place of the installed ones")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    options = Options(
        count=given.rows, steps=given.steps, seed=given.seed, device=given.device, family=given.family
    )
    bench = Bench(replace(options, batch=4 * given.rows))
    shown, glance = [], []
    for section in SECTIONS:
        if not options.has(section.member):
            print(f"{section.title}: {section.member} is not in this installation, and left out.")
            continue
        rows = section.rows(bench)
        path = given.docs / "images" / "gallery" / section.file
        _save(_sheet(rows), path)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
        shown.append(section)
        if section.glance is not None:
            first, last = (rows[0][place][0] for place in section.glance)
            glance += [(first, section.title), (last, "")]
    path = given.docs / "images" / "tasks.webp"
    _save(
        contact_sheet([image for image, _ in glance], [text for _, text in glance], columns=6, cell=144), path
    )
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    write_text(given.docs / "gallery.md", page(shown))


if __name__ == "__main__":
    main()
