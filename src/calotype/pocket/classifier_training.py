"""How the attribute classifier learns: scenes rendered on the fly, roughened pictures, heat maps of centres."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from calotype.core.errors import InputError
from calotype.pocket.classifier import GRID, PICTURE_SIZE, AttributeClassifier, Maps, read_pictures
from calotype.pocket.labels import Labels, labels_of, reading_order
from calotype.pocket.renderer import compiled_renderer, render
from calotype.pocket.scene import SceneBatch, sample_scenes

_HEAT_SPREAD = 0.75
"""Width of a centre's blob on the heat map, in cells."""


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator, device=generator.device)


def _blur(images: Tensor, sigma: float) -> Tensor:
    x = torch.arange(-3, 4, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-x * x / (2 * sigma * sigma))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, 7)
    images = F.conv2d(F.pad(images, (3, 3, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(F.pad(images, (0, 0, 3, 3), mode="replicate"), kernel.transpose(2, 3), groups=3)


def roughen(images: Tensor, labels: Labels, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Pictures as a generator might have drawn them: mirrored, shifted, scaled, soft, noisy, slightly off in tone.

    Colours stay within a few percent, so that their names stay right.
    """
    n, device = len(images), images.device
    mirror = torch.where(_uniform(n, 0, 1, generator) < 0.5, -1.0, 1.0).view(n)
    zoom = _uniform(n, 0.92, 1.06, generator).view(n)
    shift = torch.rand(n, 2, generator=generator, device=device) * 0.08 - 0.04
    matrix = torch.zeros(n, 2, 3, device=device)
    matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, :, 2] = mirror * zoom, zoom, shift
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    # the grid says where an output pixel comes from; centres go the other way, and their y points up
    x = (labels.center[..., 0] - shift[:, :1]) / (mirror * zoom)[:, None]
    y = (labels.center[..., 1] + shift[:, 1:]) / zoom[:, None]

    soft = _blur(images, 1.0)
    images = torch.lerp(images, soft, _uniform(n, -0.3, 1.0, generator))
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = torch.where(_uniform(n, 0, 1, generator) < 0.2, coarse, images)
    gain = 1 + 0.04 * (2 * torch.rand(n, 3, 1, 1, generator=generator, device=device) - 1)
    images = images.clamp(1e-4, 1) ** _uniform(n, 0.9, 1.1, generator) * gain
    gray = images.mean(1, keepdim=True)
    images = torch.lerp(gray, images, _uniform(n, 0.88, 1.1, generator))
    noise = torch.randn(images.shape, generator=generator, device=device)
    # VAE-like errors are smooth: half of the noise is
    noise = noise + 2.0 * F.interpolate(noise[:, :, ::4, ::4], scale_factor=4, mode="bilinear")
    images = images + noise * _uniform(n, 0.0, 0.025, generator)

    center = torch.stack((x, y), dim=-1)
    present = labels.shape >= 0
    order = reading_order(center, present)
    return images.clamp(0, 1), Labels(
        count=labels.count,
        shape=labels.shape.gather(1, order),
        color=labels.color.gather(1, order),
        center=center.gather(1, order.unsqueeze(-1).expand(-1, -1, 2)),
        floor=labels.floor,
        sky=labels.sky,
    )


def classifier_loss(maps: Maps, labels: Labels) -> Tensor:
    """Focal loss of the heat map; cross entropy of shape and colour around centres, of floor and sky."""
    cells = torch.arange(GRID, device=maps.heat.device, dtype=torch.float32)
    column = (labels.center[..., 0] + 1) * (GRID / 2) - 0.5
    row = (1 - labels.center[..., 1]) * (GRID / 2) - 0.5
    present = (labels.shape >= 0).float()
    away_x = (cells - column.unsqueeze(-1)) ** 2
    away_y = (cells - row.unsqueeze(-1)) ** 2
    blobs = torch.exp(-(away_y[..., :, None] + away_x[..., None, :]) / (2 * _HEAT_SPREAD**2))
    blobs = blobs * present[..., None, None]
    target, owner = blobs.max(dim=1)

    heat = maps.heat.float()
    probability = heat.sigmoid()
    # quality focal loss: the target is the blob itself, cells already right count little
    focal = (
        F.binary_cross_entropy_with_logits(heat, target, reduction="none")
        * (target - probability).abs() ** 1.5
    )
    objects = present.sum().clamp_min(1.0)
    loss = focal.sum() / objects

    weight = target * (target > 0.35)
    total = weight.sum().clamp_min(1e-3)
    for logits, ids in ((maps.shape, labels.shape), (maps.color, labels.color)):
        wanted = ids.clamp_min(0).gather(1, owner.flatten(1)).view_as(owner)
        loss = loss + (F.cross_entropy(logits.float(), wanted, reduction="none") * weight).sum() / total
    loss = loss + 0.5 * F.cross_entropy(maps.floor.float(), labels.floor)
    return loss + 0.5 * F.cross_entropy(maps.sky.float(), labels.sky)


@dataclass
class _Pool:
    """Rendered pictures (8 bits, on the device) with their labels; the oldest are replaced by fresh ones."""

    images: Tensor
    labels: Labels
    filled: int = 0
    oldest: int = 0
    rendered: int = 0

    @classmethod
    def empty(cls, size: int, device: torch.device) -> _Pool:
        def ids(*shape: int) -> Tensor:
            return torch.zeros(size, *shape, dtype=torch.int64, device=device)

        images = torch.empty(size, 3, PICTURE_SIZE, PICTURE_SIZE, dtype=torch.uint8, device=device)
        center = torch.zeros(size, 3, 2, device=device)
        return cls(images, Labels(ids(), ids(3), ids(3), center, ids(), ids()))

    def add(self, images: Tensor, labels: Labels) -> None:
        n = min(len(images), len(self.images) - self.oldest)
        place = slice(self.oldest, self.oldest + n)
        self.images[place] = (images[:n] * 255 + 0.5).to(torch.uint8)
        for f in fields(Labels):
            getattr(self.labels, f.name)[place] = getattr(labels, f.name)[:n]
        self.oldest = (self.oldest + n) % len(self.images)
        self.filled = min(len(self.images), self.filled + n)
        self.rendered += n

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Labels]:
        index = torch.randint(self.filled, (n,), generator=generator, device=self.images.device)
        return self.images[index].float() / 255, self.labels[index]


def _renderer(compiled: bool, supersample: int, batch: int) -> Callable[[SceneBatch], Tensor]:
    """Scenes to pictures; where compiling fails that is said, and rendering goes on uncompiled."""

    def plain(scenes: SceneBatch) -> Tensor:
        return render(scenes, PICTURE_SIZE, supersample).rgb

    if not compiled:
        return plain
    fast = compiled_renderer(PICTURE_SIZE, supersample, batch)
    began = time.monotonic()
    try:
        fast(sample_scenes(batch, torch.Generator("cuda").manual_seed(0)))
        torch.cuda.synchronize()
    except (
        Exception
    ) as error:  # compilers fail in many ways; the plain renderer gives the same pictures, slower
        print(
            f"WARNING: the renderer does not compile, rendering goes on uncompiled: {error}"[:1500],
            flush=True,
        )
        return plain
    print(f"renderer compiled in {time.monotonic() - began:.0f} s", flush=True)
    return lambda scenes: fast(scenes).rgb


def train_classifier(
    seconds: float,
    device: torch.device | str = "cuda",
    seed: int = 0,
    *,
    batch_size: int | None = None,
    pool_size: int | None = None,
    render_batch: int | None = None,
    supersample: int = 2,
    learning_rate: float = 2.5e-3,
) -> tuple[AttributeClassifier, dict[str, Any]]:
    """Train from scratch for ``seconds`` (the clock starts when the renderer is compiled).

    A third of the time fills a pool of pictures, the rest trains on it while a part of it is renewed at every few
    steps. The learning rate follows the clock: a short rise, then a cosine down to zero.

    Returns:
        the classifier, in evaluation mode on ``device``, and a record of the training (plain values).

    Raises:
        InputError: ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise InputError(f"The training time must be positive, not {seconds}.")
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    batch_size = batch_size or (512 if on_gpu else 16)
    render_batch = render_batch or (128 if on_gpu else 8)
    pool = _Pool.empty(pool_size or (96 * 1024 if on_gpu else 2048), device)
    generator = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)
    classifier = AttributeClassifier().to(device)
    classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward = torch.compile(classifier) if on_gpu else classifier
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02, fused=on_gpu
    )
    pictures = _renderer(on_gpu, supersample, render_batch)

    def refill() -> None:
        scenes = sample_scenes(render_batch, generator, "all")
        pool.add(pictures(scenes), labels_of(scenes))

    def step(progress: float) -> Tensor:
        rate = min(1.0, progress / 0.05 + 0.02) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate
        images, labels = roughen(*pool.draw(batch_size, generator), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            maps = forward(images.contiguous(memory_format=torch.channels_last))
        loss = classifier_loss(maps, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(classifier.parameters(), 5.0)
        optimizer.step()
        return loss.detach()

    refill()
    if on_gpu:
        step(0.0)
        torch.cuda.synchronize()
    start = time.monotonic()
    filling = 0.35 * seconds
    while time.monotonic() - start < filling and pool.filled < len(pool.images):
        refill()
        if on_gpu:
            torch.cuda.synchronize()
    filled_at = time.monotonic() - start
    steps, shown = 0, start
    while (elapsed := time.monotonic() - start) < seconds or not steps:
        loss = step(min(1.0, (elapsed - filled_at) / max(seconds - filled_at, 1e-6)))
        steps += 1
        if steps % 4 == 0:
            refill()
        if on_gpu and steps % 8 == 0:
            torch.cuda.synchronize()  # so that the clock sees the work and not its queue
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(
                f"classifier {elapsed:5.0f} s  step {steps}  loss {loss.item():.4f}  pictures {pool.rendered}",
                flush=True,
            )
    record = {
        "seed": seed,
        "seconds": round(seconds, 1),
        "steps": steps,
        "batch_size": batch_size,
        "rendered": pool.rendered,
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    }
    return classifier.eval(), record


@torch.no_grad()
def evaluate_classifier(
    classifier: AttributeClassifier, scenes: int = 1024, seed: int = 1_000_003, supersample: int = 2
) -> dict[str, float]:
    """Shares read rightly on fresh renders, on the classifier's device.

    ``shape`` and ``color`` are per object, an object counted in another slot than its own is wrong; ``order`` is
    per scene of several objects of different colours: all colours in the right order from left to right.
    """
    device = classifier.place.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    right: dict[str, float] = dict.fromkeys(("count", "shape", "color", "floor", "sky", "order"), 0.0)
    total = dict.fromkeys(right, 0.0)
    classifier.eval()
    for start in range(0, scenes, 128):
        batch = sample_scenes(min(128, scenes - start), generator, "all")
        truth = labels_of(batch)
        found = read_pictures(classifier, render(batch, PICTURE_SIZE, supersample).rgb)
        present = truth.shape >= 0
        ordered = truth.color.sort(dim=1).values
        unlike = (truth.count > 1) & ((ordered[:, 1:] != ordered[:, :-1]) | (ordered[:, 1:] < 0)).all(1)
        for name, good, counted in (
            ("count", found.count == truth.count, torch.ones_like(truth.count)),
            ("shape", found.shape == truth.shape, present),
            ("color", found.color == truth.color, present),
            ("floor", found.floor == truth.floor, torch.ones_like(truth.floor)),
            ("sky", found.sky == truth.sky, torch.ones_like(truth.sky)),
            ("order", (found.color == truth.color).all(1), unlike),
        ):
            right[name] += float((good & counted.bool()).sum())
            total[name] += float(counted.sum())
    return {name: right[name] / max(total[name], 1.0) for name in right}
