"""Scenes that move: what the main object or the camera does, and the scene at any time of it.

Everything is worked out when a moving scene is drawn, so that the whole way lies in the picture and nothing is run
into; a moment of it is an ordinary :class:`SceneBatch` for the renderer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from calotype.core.errors import InputError
from calotype.pocket.placement import camera_axes, heights, project
from calotype.pocket.scene import SceneBatch, sample_scenes
from calotype.pocket.sdf import form_table
from calotype.pocket.vocabulary import COLORS, HELD_OUT, SHAPES, SIZE_RADIUS, SIZES

MOTIONS = (
    "left", "right", "away", "closer", "fall", "rise", "jump", "spin", "circle", "still",
    "camera_left", "camera_right", "camera_in", "camera_out",
)  # fmt: skip
"""What moves and where to; the order is the id. Without ``camera`` it is the main object, the one in slot 0."""
MOTION_SHARES = (0.19, 0.19, 0.09, 0.09, 0.08, 0.07, 0.05, 0.04, 0.05, 0.03, 0.04, 0.04, 0.02, 0.02)
SPEEDS = ("slow", "normal", "fast")
FRAMES = 16
ROLLING = ("sphere", "torus", "star")
"""Shapes that roll sideways where others slide; towards or away from the viewer only a sphere does."""
SPINNING = ("cube", "torus", "pyramid", "octahedron", "star")
"""Shapes that look different from other sides."""
_HELD_OUT_EVERY = 9
_EDGE = 0.95
"""Of the half width of the picture: objects stay within."""


def is_held_out(motion: Tensor, shape: Tensor, color: Tensor) -> Tensor:
    """bool: which combinations of ids no training clip contains: every ninth, and the held-out pairs of the scenes."""
    pair = torch.zeros(len(SHAPES), len(COLORS), dtype=torch.bool, device=shape.device)
    for name, tone in HELD_OUT:
        pair[SHAPES.index(name), COLORS.index(tone)] = True
    return pair[shape, color] | ((motion + 2 * shape + 4 * color) % _HELD_OUT_EVERY == 0)


@dataclass(frozen=True)
class MotionRecord:
    """One motion in plain Python, for captions."""

    name: str
    """of :data:`MOTIONS`"""
    speed: str
    rolls: bool
    """the main object rolls, where another shape would slide"""


@dataclass(frozen=True)
class MovingScenes:
    """B scenes with what happens in them; all tensors on one device."""

    scene: SceneBatch
    """at rest: the main object stands where the middle of its way is, the camera likewise"""
    motion: Tensor
    """int64 [B]"""
    speed: Tensor
    """int64 [B]"""
    start: Tensor
    """[B, 3], where the main object's point of standing is at time 0"""
    end: Tensor
    """[B, 3], and at time 1; for ``jump`` and ``circle`` the highest point, and the radii along x and z"""
    turn: Tensor
    """[B]: radians by which the object (``spin``) or the camera (``camera_left``, ``camera_right``) turns"""
    dolly: Tensor
    """[B, 2]: how far the camera is from its target at time 0 and 1, as a multiple of the scene's"""

    def __len__(self) -> int:
        return len(self.motion)

    def __getitem__(self, index: slice | Tensor) -> MovingScenes:
        return MovingScenes(*(getattr(self, f.name)[index] for f in fields(self)))

    def to(self, device: torch.device | str) -> MovingScenes:
        return MovingScenes(*(getattr(self, f.name).to(device) for f in fields(self)))

    def at(self, time: Tensor) -> SceneBatch:
        """The scenes at the times [B] from 0 to 1."""
        return _moment(self, time)

    def frames(self, count: int = FRAMES) -> SceneBatch:
        """``count`` moments of every scene, evenly from 0 to 1: B·count scenes, those of a clip together."""
        index = torch.arange(len(self), device=self.motion.device).repeat_interleave(count)
        time = torch.linspace(0, 1, count, device=self.motion.device).repeat(len(self))
        return self[index].at(time)

    def ways(self, count: int = FRAMES) -> Tensor:
        """Where the main object is seen in :meth:`frames`, [B, count, 3]: right and up, of the picture's half width,
        and the logarithm of its distance."""
        scenes = self.frames(count)
        place = scenes.position[:, 0].clone()
        place[:, 1] += heights(scenes.shape, scenes.scale)[:, 0] / 2
        x, y, distance = project(place, scenes.eye, scenes.target, scenes.fov)
        return torch.stack((x, y, distance.log()), dim=-1).unflatten(0, (len(self), count))

    def records(self) -> list[MotionRecord]:
        """The motions in plain Python."""
        rolls = _rolls(self.motion, self.scene.shape[:, 0]).tolist()
        rows = zip(self.motion.tolist(), self.speed.tolist(), rolls, strict=True)
        return [MotionRecord(MOTIONS[m], SPEEDS[s], roll) for m, s, roll in rows]


def _among(names: tuple[str, ...], chosen: tuple[str, ...], ids: Tensor) -> Tensor:
    return torch.tensor([name in chosen for name in names], device=ids.device)[ids]


def _is(motion: Tensor, *names: str) -> Tensor:
    return _among(MOTIONS, names, motion)


def _rolls(motion: Tensor, shape: Tensor) -> Tensor:
    across = _is(motion, "left", "right") & _among(SHAPES, ROLLING, shape)
    return across | (_is(motion, "away", "closer") & _among(SHAPES, ("sphere",), shape))


def _star_lift(angle: Tensor) -> Tensor:
    """How much higher than on two points, in units of its tip's radius, a star's centre is after rolling on."""
    fifth = 2 * math.pi / 5
    from_tip = (torch.remainder(angle, fifth) - fifth / 2).abs()  # 0 when it stands on one point
    return torch.cos(from_tip) - math.cos(fifth / 2)


def _moment(moving: MovingScenes, time: Tensor) -> SceneBatch:
    scene, motion = moving.scene, moving.motion
    speed = moving.speed.to(time)
    # falling gathers speed and ends in rest; a fast fall is over earlier. Rising slows down towards its end.
    landing = 1.0 - 0.2 * speed
    course = torch.where(_is(motion, "fall"), (time / landing).clamp_max(1.0).square(), time)
    course = torch.where(_is(motion, "rise"), time * (1.6 - 0.6 * time), course)
    hop = torch.sin(math.pi * (speed + 1) * time).abs()
    course = torch.where(_is(motion, "jump"), hop, course)
    place = moving.start + (moving.end - moving.start) * course[:, None]
    phase = 2 * math.pi * time
    around = torch.stack((torch.cos(phase), torch.zeros_like(phase), torch.sin(phase)), dim=-1)
    place = torch.where(_is(motion, "circle")[:, None], moving.start + moving.end * around, place)

    rolls = _rolls(motion, scene.shape[:, 0]) & _is(motion, "left", "right")
    radius = form_table("top", motion.device)[scene.shape[:, 0]] * scene.scale[:, 0]
    angle = torch.where(rolls, (moving.start[:, 0] - place[:, 0]) / radius, 0.0)
    is_star = _among(SHAPES, ("star",), scene.shape[:, 0])
    place = place + torch.stack(
        (torch.zeros_like(angle), torch.where(is_star & rolls, _star_lift(angle) * radius, 0.0), 0 * angle),
        -1,
    )
    position, yaw, roll = scene.position.clone(), scene.yaw.clone(), scene.roll.clone()
    position[:, 0], roll[:, 0] = place, angle
    yaw[:, 0] = yaw[:, 0] + torch.where(_is(motion, "spin"), moving.turn * time, 0.0)

    # the camera turns about the vertical through itself, half of the way before and half after the scene's view
    turned = torch.where(_is(motion, "camera_left", "camera_right"), moving.turn * (time - 0.5), 0.0)
    view = scene.target - scene.eye
    cos, sin = torch.cos(turned), torch.sin(turned)
    view = torch.stack(
        (cos * view[:, 0] + sin * view[:, 2], view[:, 1], cos * view[:, 2] - sin * view[:, 0]), -1
    )
    target = scene.eye + view
    away = moving.dolly[:, 0] + (moving.dolly[:, 1] - moving.dolly[:, 0]) * time
    eye = target - view * away[:, None]
    values = {f.name: getattr(scene, f.name) for f in fields(SceneBatch)}
    return SceneBatch(
        **{**values, "position": position, "yaw": yaw, "roll": roll, "eye": eye, "target": target}
    )


def _x_on_screen(across: Tensor, z: Tensor, scene: SceneBatch) -> Tensor:
    """World x of the point on the floor at depth ``z`` that is seen at ``across`` (-1 to 1)."""
    right, _, forward = camera_axes(scene.eye, scene.target)
    slope = across * torch.tan(scene.fov * (math.pi / 360))
    dz, dy = z - scene.eye[:, 2], -scene.eye[:, 1]
    ahead = dy * forward[:, 1] + dz * forward[:, 2]
    return scene.eye[:, 0] + (slope * ahead - dz * right[:, 2]) / (right[:, 0] - slope * forward[:, 0])


def _highest(x: Tensor, z: Tensor, height: Tensor, scene: SceneBatch) -> Tensor:
    """How high above the floor an object of this height may be at (x, z) and still be in the picture."""
    _, up, forward = camera_axes(scene.eye, scene.target)
    slope = 0.93 * torch.tan(scene.fov * (math.pi / 360))
    level = torch.stack((x - scene.eye[:, 0], torch.zeros_like(x), z - scene.eye[:, 2]), dim=-1)
    rise = (level * (slope[:, None] * forward - up)).sum(-1) / (up[:, 1] - slope * forward[:, 1])
    return (scene.eye[:, 1] + rise - height).clamp_min(0.3)


def sample_moving_scenes(
    n: int, generator: torch.Generator | None = None, split: str = "train"
) -> MovingScenes:
    """``n`` random moving scenes on the generator's device; one object in most of them, else two.

    In ``train`` nothing of :func:`is_held_out` occurs, in ``heldout`` every main object does what it never does there.

    Raises:
        InputError: ``n`` is not positive, or the split is neither of the two.
    """
    if split not in ("train", "heldout"):
        raise InputError(f"There is no split {split!r} of moving scenes; there are train and heldout.")
    scene = sample_scenes(n, generator, split="train")
    device = scene.device
    shares = torch.tensor(MOTION_SHARES, device=device).expand(n, -1)
    motion = torch.multinomial(shares, 1, generator=generator)[:, 0]
    shape, color = _allowed_pairs(motion, split, generator)
    return arrange(scene, motion, shape, color, generator)


def _allowed_pairs(motion: Tensor, split: str, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """A random (shape, colour) for each motion, of the split, and of a shape with which the motion can be seen."""
    every = torch.arange(len(SHAPES) * len(COLORS), device=motion.device)
    shapes, colors = every // len(COLORS), every % len(COLORS)
    held = is_held_out(motion[:, None], shapes, colors)
    fits = ~_is(motion, "spin")[:, None] | _among(SHAPES, SPINNING, shapes)
    allowed = fits & (held if split == "heldout" else ~held)
    pick = torch.multinomial(allowed.float(), 1, generator=generator)[:, 0]
    return shapes[pick], colors[pick]


def arrange(
    scene: SceneBatch, motion: Tensor, shape: Tensor, color: Tensor, generator: torch.Generator | None
) -> MovingScenes:
    """Let objects of the ids ``shape`` and ``color`` [B] move through scenes; of the others one stays, at most."""
    n, device = len(scene), scene.device

    def uniform(low: float | Tensor, high: float | Tensor) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    speed = torch.randint(len(SPEEDS), (n,), generator=generator, device=device)
    level = speed + uniform(-0.5, 0.5)  # from -0.5 to 2.5
    camera = _is(motion, "camera_left", "camera_right", "camera_in", "camera_out")
    circle = _is(motion, "circle")

    second = scene.present[:, 1] & (uniform(0, 1) < 0.45)
    second &= ~_is(motion, "away", "closer", "spin") & (
        (shape != scene.shape[:, 1]) | (color != scene.color[:, 1])
    )
    present = torch.stack((torch.ones_like(second), second, torch.zeros_like(second)), dim=1)
    size = scene.size.clone()
    upward = _is(motion, "fall", "rise", "jump", "circle")
    size[:, 0] = torch.where(upward, size[:, 0].clamp_max(1), size[:, 0].clamp_min(1 - second.long()))
    size[:, 0] = torch.where(circle, 0, size[:, 0])
    size[:, 1] = torch.where(circle, size[:, 1].clamp_max(0), size[:, 1].clamp_max(1))
    scale = torch.tensor([SIZE_RADIUS[name] for name in SIZES], device=device)[size]
    form = torch.cat((shape[:, None], scene.shape[:, 1:]), dim=1)
    tint = torch.cat((color[:, None], scene.color[:, 1:]), dim=1)
    tall = heights(form, scale)[:, 0]
    width = form_table("width", device)[shape] * scale[:, 0]
    zoom = 1.0 / torch.tan(scene.fov * (math.pi / 360))

    # the middle of the main object's way: how deep, and where across the picture
    z = uniform(-0.4, 0.9)
    z = torch.where(upward, uniform(-1.4, 0.0), z)
    z = torch.where(_is(motion, "camera_in", "camera_out", "spin"), uniform(-0.6, 0.3), z)
    z = torch.where(circle, uniform(-0.9, -0.3), z)
    half = 1.08 * width / (scene.eye[:, 2] - z - 0.3 * width) * zoom
    room = (_EDGE - half).clamp_min(0.05)
    travel = torch.where(_is(motion, "left", "right"), (0.66 + 0.26 * level).clamp(0.5, 1.3), 0.0)
    travel = torch.minimum(travel, 2 * room)
    middle = uniform(-1, 1) * (room - travel / 2)
    middle = torch.where(camera, middle.clamp(-0.2, 0.2), middle)
    middle = torch.where(circle, middle.clamp(-0.25, 0.25), middle)
    sign = torch.where(_is(motion, "left"), 1.0, -1.0)  # of where it starts
    x = _x_on_screen(middle, z, scene)
    flat = torch.zeros_like(x)

    start, end = torch.stack((x, flat, z), dim=-1), torch.stack((x, flat, z), dim=-1)
    start[:, 0] = _x_on_screen(middle + sign * travel / 2, z, scene)
    end[:, 0] = _x_on_screen(middle - sign * travel / 2, z, scene)
    # along the line of sight, so that it stays at its place across the picture
    far = uniform(0.4, 1.1) - (3.4 + 1.4 * level)
    near = uniform(0.2, 1.0)
    nearness = 1.08 * width / (scene.eye[:, 2] - near - width) * zoom
    aside = uniform(-1, 1) * (_EDGE - nearness).clamp(0.0, 0.55)
    deep = [torch.stack((_x_on_screen(aside, at, scene), flat, at), dim=-1) for at in (near, far)]
    for name, (first, last) in {"away": deep, "closer": deep[::-1]}.items():
        chosen = _is(motion, name)[:, None]
        start, end = torch.where(chosen, first, start), torch.where(chosen, last, end)
    top = _highest(x, z, tall, scene)
    start[:, 1] = torch.where(_is(motion, "fall"), top * uniform(0.85, 1.0), 0.0)
    end[:, 1] = torch.where(_is(motion, "rise"), top * (0.7 + 0.12 * level).clamp(0.6, 1.0), 0.0)
    end[:, 1] = torch.where(_is(motion, "jump"), top * uniform(0.45, 0.75), end[:, 1])
    radii = torch.stack((uniform(1.25, 1.45), flat, uniform(1.25, 1.45)), dim=-1)
    ways = torch.stack([torch.where(uniform(0, 1) < 0.5, 1.0, -1.0) for _ in range(3)], dim=-1)
    end = torch.where(circle[:, None], radii * ways, end)

    # what stands still is behind the way, in the middle of a circle, or beside what goes up and down
    behind = torch.where(camera, z - 1.9, uniform(-3.0, -2.2) + z.clamp_max(0.0))
    beside = uniform(-0.6, 0.6)
    beside = torch.where(upward | camera, torch.where(middle > 0, -0.55, 0.55) + uniform(-0.08, 0.08), beside)
    still = torch.stack((_x_on_screen(beside, behind, scene), flat, behind), dim=-1)
    still = torch.where(circle[:, None], start, still)
    position = torch.stack((start.lerp(end, 0.5), still, still), dim=1)
    position[:, 0] = torch.where((upward | camera)[:, None], start, position[:, 0])

    turn = (0.5 * math.pi) * 2.0 ** speed.to(z) * torch.where(uniform(0, 1) < 0.5, 1.0, -1.0)
    pan = (math.pi / 180) * (12.0 + 4.0 * level)
    turn = torch.where(_is(motion, "camera_left"), pan, turn)
    turn = torch.where(_is(motion, "camera_right"), -pan, turn)
    reach = torch.stack((1.35 + 0.2 * level, 0.86 * torch.ones_like(level)), dim=1)
    dolly = torch.where(_is(motion, "camera_in")[:, None], reach, torch.ones_like(reach))
    dolly = torch.where(_is(motion, "camera_out")[:, None], reach.flip(1), dolly)

    yaw = scene.yaw.clone()
    yaw[:, 0] = torch.where(_rolls(motion, shape), 0.0, yaw[:, 0])
    values = {f.name: getattr(scene, f.name) for f in fields(SceneBatch)}
    still_scene = SceneBatch(
        **{
            **values,
            "shape": form, "color": tint, "size": size, "present": present, "position": position, "yaw": yaw,
            "support": torch.full_like(scene.support, -1),
        }
    )  # fmt: skip
    return MovingScenes(still_scene, motion, speed, start, end, turn, dolly)
