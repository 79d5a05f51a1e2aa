"""Lossless depth codecs to compare ours with, and the size of every frame under each; all are checked bit by bit."""

import io

import numpy as np
import zstandard
from PIL import Image

from protocol.images import DepthEncoder, decode_depth, decode_rgb, encode_rgb

LEVEL = 1


def compare(frames):
    """Return mean bytes by codec, ours first; raises SystemExit where a round trip changes a bit."""
    sizes = {"ours": ours(frames.depth)}
    for name, encode, decode in (
        ("zstd-1", zstd, unzstd),
        ("left + split", left, unleft),
        ("palette + 2-D", palette, unpalette),
        ("RVL", rvl, unrvl),
        ("PNG", png, unpng),
    ):
        sizes[name] = []
        for depth in frames.depth:
            values = depth.view(np.uint16)
            encoded = encode(values)
            same(name, values, decode(encoded))
            sizes[name].append(len(encoded))
    return {name: float(np.mean(each)) for name, each in sizes.items()}


def ours(depths):
    """Return the bytes of each frame as roverd encodes them, checked with trainerd's decoder."""
    encoder, sizes = DepthEncoder(), []
    into = np.zeros(depths[0].shape, np.int16)
    for depth in depths:
        codec, encoded = encoder.encode(depth)
        into.fill(0)
        decode_depth(codec, encoded, into)
        same(f"ours ({codec})", depth, into)
        sizes.append(len(encoded))
    return sizes


def colour(frames):
    """Return the mean bytes of the JPEGs and their mean PSNR in dB."""
    sizes, noise = [], []
    for rgb in frames.rgb:
        encoded, into = encode_rgb(rgb), np.zeros_like(rgb)
        decode_rgb(encoded, into)
        sizes.append(len(encoded))
        error = np.mean((rgb.astype(np.float32) - into.astype(np.float32)) ** 2)
        noise.append(10 * np.log10(255**2 / max(1e-9, error)))
    return float(np.mean(sizes)), float(np.mean(noise))


def same(name, wanted, got):
    if not np.array_equal(wanted, got):
        raise SystemExit(f"bench link: {name}: {np.count_nonzero(wanted != got)} pixels changed in a round trip")


def deflate(content):
    return zstandard.ZstdCompressor(level=LEVEL).compress(content)


def inflate(encoded):
    return zstandard.ZstdDecompressor().decompress(encoded)


def zstd(values):
    return shape(values) + deflate(values.tobytes())


def unzstd(encoded):
    return np.frombuffer(inflate(encoded[4:]), np.uint16).reshape(unshape(encoded))


def shape(values):
    return np.array(values.shape, np.uint16).tobytes()


def unshape(encoded):
    return tuple(int(each) for each in np.frombuffer(encoded[:4], np.uint16))


def split(values):
    return values.reshape(-1).view(np.uint8).reshape(-1, 2).T.tobytes()


def join(content):
    return np.ascontiguousarray(np.frombuffer(content, np.uint8).reshape(2, -1).T).view(np.uint16).reshape(-1)


def zigzag(values):
    """Let small differences of either sign be small numbers."""
    signed = values.view(np.int16)
    return ((signed << 1) ^ (signed >> 15)).view(np.uint16)


def unzigzag(values):
    return (values >> 1) ^ (np.uint16(0) - (values & 1))


def left(values):
    return shape(values) + deflate(split(zigzag(np.diff(values, axis=1, prepend=np.uint16(0)).astype(np.uint16))))


def unleft(encoded):
    difference = unzigzag(join(inflate(encoded[4:]))).reshape(unshape(encoded))
    return np.cumsum(difference, axis=1, dtype=np.uint16)


def palette(values):
    """Ranks of the distinct values, their 2-D difference, zigzag and byte split, however many values there are."""
    present, rank = np.unique(values, return_inverse=True)
    plane = rank.reshape(values.shape).astype(np.uint16)
    for axis in (1, 0):
        plane = np.diff(plane, axis=axis, prepend=np.uint16(0)).astype(np.uint16)
    head = np.diff(present, prepend=np.uint16(0)).astype(np.uint16)
    return shape(values) + len(present).to_bytes(4, "little") + deflate(split(head) + split(zigzag(plane)))


def unpalette(encoded):
    rows, columns = unshape(encoded)
    count = int.from_bytes(encoded[4:8], "little")
    content = inflate(encoded[8:])
    present = np.cumsum(join(content[: 2 * count]), dtype=np.uint16)
    plane = unzigzag(join(content[2 * count :])).reshape(rows, columns)
    for axis in (0, 1):
        plane = np.cumsum(plane, axis=axis, dtype=np.uint16)
    return present[plane]


def rvl(values):
    """Runs of zeros and of others, differences of the others in groups of three bits (Wilson 2017)."""
    flat = values.reshape(-1).astype(np.int64)
    is_set = flat != 0
    edges = np.flatnonzero(np.diff(is_set.astype(np.int8))) + 1
    bounds = np.concatenate([[0], edges, [flat.size]])
    runs = np.diff(bounds)
    if is_set[0]:
        runs = np.concatenate([[0], runs])
    runs = np.append(runs, 0) if len(runs) % 2 else runs
    some = flat[is_set]
    difference = np.diff(some, prepend=0)
    unsigned = (difference << 1) ^ (difference >> 63)
    tokens, place = [], 0
    for zeros, others in runs.reshape(-1, 2):
        tokens += [[zeros, others], unsigned[place : place + others]]
        place += others
    return shape(values) + nibbles(np.concatenate(tokens).astype(np.int64) if tokens else np.zeros(0, np.int64))


def nibbles(tokens):
    """Pack each number as groups of three bits, lowest first, with a bit that says that another group follows."""
    count = np.ones(len(tokens), np.int64)
    for bits in range(3, 36, 3):
        count += tokens >= 1 << bits
    ends = np.cumsum(count)
    starts = ends - count
    number_of = np.repeat(np.arange(len(tokens)), count)
    within = np.arange(int(ends[-1]) if len(ends) else 0) - starts[number_of]
    groups = (tokens[number_of] >> (3 * within)) & 7
    groups += 8 * (within < count[number_of] - 1)
    groups = np.append(groups, np.zeros(-len(groups) % 8, np.int64)).astype(np.uint8)  # whole words of 32 bits
    return (groups[0::2] << 4 | groups[1::2]).tobytes()


def unrvl(encoded):
    rows, columns = unshape(encoded)
    packed = np.frombuffer(encoded[4:], np.uint8)
    groups = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1).astype(np.int64)
    last = np.flatnonzero(groups < 8)
    starts = np.concatenate([[0], last[:-1] + 1])
    number_of = np.repeat(np.arange(len(last)), last - starts + 1)
    within = np.arange(len(number_of)) - starts[number_of]
    tokens = np.zeros(len(last), np.int64)
    np.add.at(tokens, number_of, (groups[: len(number_of)] & 7) << (3 * within))
    flat, place, at, before = np.zeros(rows * columns, np.uint16), 0, 0, 0
    while place < rows * columns:
        zeros, others = int(tokens[at]), int(tokens[at + 1])
        unsigned = tokens[at + 2 : at + 2 + others]
        values = np.cumsum((unsigned >> 1) ^ -(unsigned & 1)) + before
        place += zeros
        flat[place : place + others] = values
        before = int(values[-1]) if others else before
        place, at = place + others, at + 2 + others
    return flat.reshape(rows, columns)


def png(values):
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG", compress_level=6)
    return out.getvalue()


def unpng(encoded):
    return np.array(Image.open(io.BytesIO(encoded))).astype(np.uint16)
