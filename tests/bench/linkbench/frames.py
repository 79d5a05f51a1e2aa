"""Frames to measure with: a ray-cast room with a stereo camera's faults, or a folder of real recordings.

The synthetic frames copy what recordings of RealSense D4xx cameras show: depth is K / n with a whole n (disparity in
1/32 px), an invalid band at the left edge, holes at edges of objects and on dull surfaces, a few saturated pixels
(65535) and distances beyond 10 m through a doorway. They are no recording: sizes on real frames need ``--frames``.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from protocol.spec import Camera, Element, RobotSpec, TaskSpec

HEIGHT, WIDTH = 240, 424
FX = 213.0
BASELINE_MM = 50.0
K = 32 * BASELINE_MM * FX
"""Depth in millimetres times disparity in 1/32 px."""
SATURATED = 65535
SEED = 3
ROOM = ((-4.0, -3.0, 0.0), (4.0, 3.0, 2.6))
"""Corners of the room in metres; behind a doorway in the wall at x = 4 a corridor goes on."""
DOOR = (-1.4, 1.0, 2.3)
"""Left and right edge and height of the doorway."""
CORRIDOR_M = 14.0
BOXES = (
    ((-1.5, 1.4, 0.0), (-0.4, 2.2, 0.75)),
    ((1.2, 0.9, 0.0), (1.9, 1.5, 0.45)),
    ((1.8, -2.2, 0.0), (2.4, -1.2, 1.8)),
    ((-0.2, -1.9, 0.0), (0.3, -1.4, 0.5)),
    ((0.6, -0.4, 0.0), (0.9, -0.1, 0.3)),
    ((2.9, 1.9, 0.0), (3.6, 2.7, 1.1)),
    ((-3.4, -2.6, 0.0), (-2.8, -1.6, 0.9)),
    ((2.6, 0.2, 0.0), (2.75, 0.35, 1.2)),
)
SCREEN = -1
"""Shade of a surface without texture, on which stereo finds nothing."""


@dataclass(frozen=True)
class Frames:
    """Colour uint8[240, 424, 3] and depth int16[240, 424] (millimetres, the bits of uint16), of equal number."""

    name: str
    rgb: list
    depth: list


def robot_spec(height=HEIGHT, width=WIDTH, rate_hz=30.0):
    """Return a robot with one colour and one depth camera, six state and two action elements."""
    state = tuple(Element(name, "m/s", -2.0, 2.0) for name in ("v", "w", "left", "right", "roll", "pitch"))
    return RobotSpec(
        name="bench",
        cameras=(
            Camera("front", "rgb", height, width, rate_hz),
            Camera("front", "depth", height, width, rate_hz),
        ),
        state=state,
        action=(Element("linear", "m/s", -1.0, 1.0), Element("angular", "rad/s", -2.0, 2.0)),
        control_rate_hz=rate_hz,
    )


def task_spec():
    """Return a task with a goal of two numbers."""
    return TaskSpec("reach", (Element("goal_x", "m", -9.0, 9.0), Element("goal_y", "m", -9.0, 9.0)))


def synthetic(count):
    """Return ``count`` frames of a drive through the room, the same ones each time."""
    rng = np.random.default_rng(SEED)
    rgb, depth = [], []
    for index in range(count):
        along = index / max(1, count - 1)
        position = np.array([-3.2 + 2.4 * along, 0.9 * math.sin(5 * along), 0.25])
        colour, distance_m, is_dull = cast(position, 0.5 * math.sin(9 * along) - 0.1 * along)
        rgb.append(noisy_colour(colour, rng))
        depth.append(noisy_depth(distance_m, is_dull, rng))
    return Frames(f"synthetic ({count})", rgb, depth)


def filtered(frames):
    """Return frames whose depth went through a filter, as the camera's own do: K / n no longer holds."""
    depth = []
    for each in frames.depth:
        values = each.view(np.uint16).astype(np.float32)
        valid = (values > 0) & (values < SATURATED)
        total, weight = np.zeros_like(values), np.zeros_like(values)
        for shift in (-1, 0, 1):
            total += np.roll(values * valid, shift, axis=1)
            weight += np.roll(valid, shift, axis=1)
        mean = np.where(valid, total / np.maximum(weight, 1), values)
        depth.append(np.rint(mean).astype(np.uint16).view(np.int16))
    return Frames(f"{frames.name}, filtered", frames.rgb, depth)


def small(count, height=24, width=40):
    """Return small frames: every tenth pixel of the synthetic ones."""
    frames = synthetic(count)
    rows, columns = np.arange(height) * (HEIGHT // height), np.arange(width) * (WIDTH // width)
    rgb = [np.ascontiguousarray(each[np.ix_(rows, columns)]) for each in frames.rgb]
    depth = [np.ascontiguousarray(each[np.ix_(rows, columns)]) for each in frames.depth]
    return Frames(f"small ({count})", rgb, depth)


@lru_cache(maxsize=1)
def camera_rays():
    """Return float64[H * W, 3] directions in the camera's frame: x ahead (always 1), y left, z up."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    ahead = np.ones((HEIGHT, WIDTH))
    rays = np.stack([ahead, (WIDTH / 2 - columns - 0.5) / FX, (HEIGHT / 2 - rows - 0.5) / FX], axis=-1)
    return rays.reshape(-1, 3)


def cast(position, yaw):
    """Return colour float32[H, W, 3], depth along the axis float[H, W] in metres, and where nothing has texture."""
    cosine, sine = math.cos(yaw), math.sin(yaw)
    rays = camera_rays() @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        nearest, shade = hit_room(position, rays)
        for number, (low, high) in enumerate(BOXES):
            first, second = (np.array(low) - position) / rays, (np.array(high) - position) / rays
            enters = np.minimum(first, second).max(axis=1)
            leaves = np.maximum(first, second).min(axis=1)
            hits = (enters < leaves) & (enters > 0.05) & (enters < nearest)
            nearest[hits], shade[hits] = enters[hits], 3 + number
    points = position + nearest[:, None] * rays
    colour = texture(points, shade)
    is_dull = (shade == SCREEN).reshape(HEIGHT, WIDTH)
    return colour.reshape(HEIGHT, WIDTH, 3), nearest.reshape(HEIGHT, WIDTH), is_dull


def hit_room(position, rays):
    """Return distances to walls, floor and ceiling, or through the doorway, and the number of the surface."""
    low, high = (np.array(corner) for corner in ROOM)
    walls = np.maximum((low - position) / rays, (high - position) / rays)
    side = walls.argmin(axis=1)
    distance = walls.min(axis=1)
    shade = side.astype(int)
    points = position + distance[:, None] * rays
    left, right, top = DOOR
    at_wall = (side == 0) & (rays[:, 0] > 0)
    through = at_wall & (points[:, 1] > left) & (points[:, 1] < right) & (points[:, 2] < top)
    walls[:, 0] = np.where(through, (CORRIDOR_M - position[0]) / rays[:, 0], walls[:, 0])
    for axis, edges in ((1, (left, right)), (2, (0.0, top))):
        beyond = np.maximum((edges[0] - position[axis]) / rays[:, axis], (edges[1] - position[axis]) / rays[:, axis])
        walls[:, axis] = np.where(through, beyond, walls[:, axis])
    distance = np.where(through, walls.min(axis=1), distance)
    is_screen = at_wall & ~through & (points[:, 1] > 1.0) & (points[:, 1] < 1.8) & (abs(points[:, 2] - 1.4) < 0.3)
    shade[is_screen] = SCREEN
    return distance, shade


def texture(points, shade):
    """Return float32[N, 3] colours: a base for each surface, boards, stripes and a grain fixed in the world."""
    palette = np.random.default_rng(1).uniform(60, 200, (3 + len(BOXES), 3))
    colour = palette[shade]
    x, y, z = points.T
    boards = np.where(shade == 2, 22.0 * (np.floor(3.1 * x) % 2) + 6 * np.sin(60 * y + 3 * np.sin(7 * x)), 0.0)
    pattern = 9 * np.sin(13 * x + 7 * y) + 7 * np.sin(23 * y - 17 * z) + boards
    grain = np.random.default_rng(2).normal(0, 5, 1 << 16)
    place = (np.floor(70 * x).astype(int) * 7919 + np.floor(70 * y).astype(int) * 104729) + np.floor(70 * z).astype(
        int
    ) * 1299709
    colour = colour + (pattern + grain[place & 0xFFFF])[:, None]
    colour[shade == SCREEN] = 12.0
    return colour.astype(np.float32)


def noisy_colour(colour, rng):
    """Return what a camera gives: darker at the rim, with noise, as uint8."""
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    rim = (1 - 0.18 * (rows**2 + columns**2))[..., None]
    noise = rng.normal(0, 1.3, colour.shape).astype(np.float32)
    return np.clip(colour * rim + noise, 0, 255).astype(np.uint8)


def noisy_depth(distance_m, is_dull, rng):
    """Return what a stereo camera gives: int16 with the bits of uint16 millimetres, K / n with holes."""
    disparity = K / (1e3 * distance_m)
    coarse = smooth_noise(rng, 6) * 2.0 + smooth_noise(rng, 3) * 1.2 + rng.normal(0, 0.25, distance_m.shape)
    steps = np.rint(disparity + coarse)
    with np.errstate(divide="ignore"):
        millimetres = np.where(steps >= 1, np.minimum(np.rint(K / steps), SATURATED), SATURATED)
    jump = np.zeros_like(is_dull)
    jump[:, 1:] |= np.abs(np.diff(disparity, axis=1)) > 24
    shadow = jump.copy()
    for shift in range(1, 7):  # what only one of the two cameras sees lies left of a near edge
        shadow[:, :-shift] |= jump[:, shift:]
    holes = shadow | (is_dull & (smooth_noise(rng, 8) > -0.8)) | (smooth_noise(rng, 7) > 1.9)
    holes[:, : int(rng.integers(13, 49))] = True
    millimetres[holes] = 0
    specks = rng.integers(0, millimetres.size, int(rng.integers(0, 60)))
    millimetres.reshape(-1)[specks] = SATURATED
    return np.ascontiguousarray(millimetres.astype(np.uint16)).view(np.int16)


def smooth_noise(rng, cell):
    """Return float[H, W] of about unit variance that changes over ``cell`` pixels."""
    rows, columns = np.arange(HEIGHT) / cell, np.arange(WIDTH) / cell
    grid = rng.normal(0, 1, (int(rows[-1]) + 2, int(columns[-1]) + 2))
    r, c = rows.astype(int), columns.astype(int)
    a, b = (rows - r)[:, None], (columns - c)[None]
    mixed = (1 - a) * (1 - b) * grid[np.ix_(r, c)] + (1 - a) * b * grid[np.ix_(r, c + 1)]
    mixed += a * (1 - b) * grid[np.ix_(r + 1, c)] + a * b * grid[np.ix_(r + 1, c + 1)]
    return 1.5 * mixed


def recorded(folder, fit):
    """Return the frames of ``folder``/rgb and ``folder``/depth (16-bit PNG, millimetres), made 424x240.

    ``fit``: ``crop`` takes the middle, ``nearest`` every so many pixels of the whole (colour: the mean of an area).
    A depth frame goes with the newest colour frame whose number is not above its own.
    """
    from PIL import Image

    colours = {number(path): path for path in sorted((folder / "rgb").iterdir())}
    depths = {number(path): path for path in sorted((folder / "depth").glob("*.png"))}
    if not colours or not depths:
        raise SystemExit(f"bench link: {folder}: expected rgb/N.png or N.jpg and depth/N.png (uint16 millimetres)")
    rgb, depth, fitted = [], [], {}
    for key in sorted(depths):
        source = max((each for each in colours if each <= key), default=min(colours))
        if source not in fitted:
            fitted[source] = fit_colour(Image.open(colours[source]).convert("RGB"), fit)
        raw = np.array(Image.open(depths[key]))
        if raw.dtype.kind not in "ui" or raw.ndim != 2 or raw.shape[0] < HEIGHT or raw.shape[1] < WIDTH:
            raise SystemExit(f"bench link: {depths[key]}: {raw.dtype}{list(raw.shape)}, expected uint16 of 424x240 up")
        rgb.append(fitted[source])
        depth.append(np.ascontiguousarray(fit_depth(raw.astype(np.uint16), fit)).view(np.int16))
    return Frames(f"{folder.name}, {fit} ({len(depth)})", rgb, depth)


def number(path: Path):
    """Return the number in a file's name."""
    digits = "".join(each for each in path.stem if each.isdigit())
    return int(digits or 0)


def fit_colour(image, fit):
    """Return a Pillow image as uint8[240, 424, 3]."""
    if fit == "crop":
        left, top = (image.width - WIDTH) // 2, (image.height - HEIGHT) // 2
        return np.array(image.crop((left, top, left + WIDTH, top + HEIGHT)))
    return np.array(image.resize((WIDTH, HEIGHT), resample=4))  # 4: BOX, the mean of an area


def fit_depth(depth, fit):
    """Return depth as [240, 424] without making new values."""
    rows, columns = depth.shape
    if fit == "crop":
        top, left = (rows - HEIGHT) // 2, (columns - WIDTH) // 2
        return depth[top : top + HEIGHT, left : left + WIDTH]
    return depth[np.ix_(np.arange(HEIGHT) * rows // HEIGHT, np.arange(WIDTH) * columns // WIDTH)]
