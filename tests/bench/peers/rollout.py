"""The rollout that every learner is fed: one robot's decisions, written once as .npz and read row by row."""

import zipfile

import numpy as np

NEAR_MM = 300
"""Inverse depth is 1 at this distance and nearer, as in ``protocol.transform``."""
FRAMES = ("rgb", "depth")
WEIGHTS = "weights/"


def write(path, arrays, weights):
    """Write a rollout of T decisions and the weights that drove it.

    ``arrays``: rgb uint8[T + 1, H, W, 3], depth int16[T + 1, H, W], vector float32[T + 1, n], u and mean float32[T, a],
    log_std float32[a], log_prob and reward float32[T], value float32[T + 1], terminated bool[T]. The last row of what
    has T + 1 is the observation behind the last decision.
    """
    np.savez(path, **arrays, **{WEIGHTS + name: value for name, value in weights.items()})


class Source:
    """Read a rollout; frames come one at a time, so that no learner's memory holds them besides its own storage."""

    def __init__(self, path):
        self.path = path
        with np.load(path) as stored:
            names = [name for name in stored.files if name not in FRAMES]
            content = {name: stored[name] for name in names}
        self.weights = {n.removeprefix(WEIGHTS): v for n, v in content.items() if n.startswith(WEIGHTS)}
        self.arrays = {name: value for name, value in content.items() if not name.startswith(WEIGHTS)}

    def __getitem__(self, name):
        return self.arrays[name]

    @property
    def size(self):
        """Height and width of the frames."""
        with zipfile.ZipFile(self.path) as archive, archive.open("depth.npy") as file:
            return _header(file)[0][1:]

    def frames(self, rows):
        """Yield (rgb uint8[H, W, 3], depth int16[H, W]) of the first rows."""
        with zipfile.ZipFile(self.path) as archive, archive.open("rgb.npy") as rgb, archive.open("depth.npy") as depth:
            shapes = [_header(file) for file in (rgb, depth)]
            for _ in range(rows):
                yield tuple(_row(file, *shape) for file, shape in zip((rgb, depth), shapes, strict=True))


def planes(rgb, depth):
    """Return float32[4, H, W] of a frame: colours in 0 to 1, and inverse depth."""
    image = np.empty((4, *depth.shape), np.float32)
    image[:3] = rgb.transpose(2, 0, 1) / np.float32(255)
    near = np.minimum(np.float32(1), np.float32(NEAR_MM) / np.maximum(depth, 1).astype(np.float32))
    image[3] = np.where(depth > 0, near, np.float32(0))
    return image


def _header(file):
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _row(file, shape, dtype):
    size = int(np.prod(shape[1:])) * dtype.itemsize
    return np.frombuffer(file.read(size), dtype).reshape(shape[1:])
