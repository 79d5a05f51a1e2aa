"""Whether the images of an episode are the declared ones: size, layout, alive, and of one time."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from protocol.framing import decode_images
from protocol.images import JPEG, ImageError, check_jpeg
from protocol.step import EpisodeEnd, Step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from protocol.spec import Camera, RobotSpec
    from trainerd.episodes.checks.entry import Entry
    from trainerd.episodes.checks.findings import Findings
    from trainerd.episodes.checks.thresholds import Thresholds

Pixels = npt.NDArray[np.generic]


@dataclass
class Seen:
    """What the decoded frames of one camera told."""

    decoded: int = 0
    blank: list[int] = field(default_factory=list)
    """Seq of each blank frame."""
    ratios: list[tuple[int, float]] = field(default_factory=list)
    """Seq and roughness with height and width swapped, over that as declared."""


class Frames:
    """Look at the images of one episode, record by record, then judge them together."""

    def __init__(self, robot: RobotSpec, limits: Thresholds, findings: Findings) -> None:
        """Expect the cameras of a robot."""
        self._robot, self._limits, self._findings = robot, limits, findings
        self._cameras = {camera.key: camera for camera in robot.cameras}
        self._seen: defaultdict[str, Seen] = defaultdict(Seen)
        self._last: dict[str, int] = {}
        self._is_blank: dict[int, bool] = {}

    def check_headers(self, seq: int, blobs: Sequence[Sequence[str]], frames: Sequence[bytes]) -> bool:
        """Compare each JPEG's header with the declared size, without decoding; False where one differs."""
        good = True
        for blob, content in zip(blobs, frames, strict=False):
            key, codec = blob[0], blob[1]
            camera = self._cameras.get(key)
            if camera is None or codec != JPEG:  # a depth frame says its size only when it is decoded
                continue
            try:
                check_jpeg(content, camera.height, camera.width)
            except ImageError as error:
                good = self._findings.hold("frames.size", seq, f"{key}: {error} (height first)", holds=False)
            else:
                self._findings.hold("frames.size", seq, "", holds=True)
        return good

    def mark_blank(self, entry: Entry, blobs: Sequence[Sequence[str]], frames: Sequence[bytes]) -> None:
        """Leave out frames that repeat and show nothing: in front of a wall depth has no reading, again and again."""
        for (key, codec, *_), content in zip(blobs, frames, strict=False):
            checksum = entry.images[key]
            if self._last.get(key) == checksum:
                if checksum not in self._is_blank:
                    self._is_blank[checksum] = self._shows_nothing(key, codec, content)
                if self._is_blank[checksum]:
                    entry.blank.add(key)
            self._last[key] = checksum

    def _shows_nothing(self, key: str, codec: str, content: bytes) -> bool:
        camera = self._cameras[key]
        pixels: Pixels = np.empty(camera.shape, camera.dtype)
        try:
            decode_images({key: (codec, content)}, {key: pixels})
        except ImageError:
            return False  # offends elsewhere
        return is_blank(pixels, self._limits)

    def look(self, seq: int, images: Mapping[str, Pixels]) -> None:
        """Look at the decoded images of a record; they are not kept."""
        for key, pixels in images.items():
            camera, seen = self._cameras[key], self._seen[key]
            seen.decoded += 1
            if camera.kind == "depth":
                self._findings.hold("frames.size", seq, "", holds=True)
            if is_blank(pixels, self._limits):
                seen.blank.append(seq)
            elif len(seen.ratios) < self._limits.layout_frames and camera.height != camera.width:
                ratio = swapped_roughness(pixels)
                if ratio is not None:
                    seen.ratios.append((seq, ratio))

    def judge(self, entries: Sequence[Entry]) -> None:
        """Judge all frames once every record was looked at."""
        for key, camera in self._cameras.items():
            self._judge_layout(camera)
            self._judge_blank(key)
            check_frozen(entries, camera, self._robot, self._limits, self._findings)
        check_pairs(entries, self._robot, self._findings)

    def _judge_layout(self, camera: Camera) -> None:
        ratios = self._seen[camera.key].ratios
        if camera.height == camera.width:
            self._findings.skip("frames.layout", f"{camera.key} is square")
        elif not ratios:
            self._findings.skip("frames.layout", f"no frame of {camera.key} was decoded that shows something")
        else:
            ratio = float(np.median([ratio for _, ratio in ratios]))
            what = (
                f"{camera.key} is {1 / max(ratio, 1e-9):.1f} times smoother as {camera.width}x{camera.height} than as "
                f"{camera.height}x{camera.width}: rows and columns are swapped in memory"
            )
            holds = ratio >= self._limits.layout_ratio
            self._findings.hold("frames.layout", ratios[0][0], what, holds=holds, ratio=ratio, frames=len(ratios))

    def _judge_blank(self, key: str) -> None:
        seen = self._seen[key]
        if not seen.decoded:
            self._findings.skip("frames.blank", f"no frame of {key} was decoded")
            return
        share = len(seen.blank) / seen.decoded
        what = f"{len(seen.blank)} of {seen.decoded} frames of {key} are blank"
        seq = seen.blank[0] if seen.blank else 0
        holds = share <= self._limits.blank_share or len(seen.blank) < self._limits.least_blank
        self._findings.hold("frames.blank", seq, what, holds=holds, blank=len(seen.blank), frames=seen.decoded)


def is_blank(pixels: Pixels, limits: Thresholds) -> bool:
    """Return True for an image of one color, or depth without readings or with one value only."""
    if pixels.ndim == 3:
        return int(np.ptp(pixels)) <= 2
    depth = pixels.astype(np.int16, copy=False)
    valid = depth[depth > 0]
    return valid.size < limits.blank_valid * pixels.size or bool(np.all(valid == valid[0]))


def swapped_roughness(pixels: Pixels) -> float | None:
    """Return how rough an image is with height and width swapped in memory, over its roughness as it is.

    Neighbours are alike in a picture; read with the wrong row length, vertical neighbours are strangers. None for a
    picture without any difference.
    """
    plane = (pixels[..., 1] if pixels.ndim == 3 else pixels).astype(np.int32)
    height, width = plane.shape
    declared, swapped = _roughness(plane), _roughness(plane.reshape(width, height))
    return swapped / declared if declared > 0 else None


def _roughness(plane: npt.NDArray[np.int32]) -> float:
    down, right = np.abs(np.diff(plane, axis=0)), np.abs(np.diff(plane, axis=1))
    return float(down.mean() + right.mean())


def check_frozen(
    entries: Sequence[Entry], camera: Camera, robot: RobotSpec, limits: Thresholds, findings: Findings
) -> None:
    """Offend where the encoded bytes of one camera stay the same while the robot moves on."""
    slower = max(1, round(robot.control_rate_hz / camera.rate_hz)) if camera.rate_hz > 0 else 1
    allowed = slower - 1 + limits.frozen_frames
    run, moved_m, turned_rad = 0, 0.0, 0.0
    previous: Entry | None = None
    last: int | None = None
    moved_at_all, frames = False, 0
    for entry in entries:
        if isinstance(entry.record, EpisodeEnd) and not entry.record.ends_episode:
            continue  # what the next step saw, once more
        if previous is not None and not entry.after_gap:
            metres, radians = _motion(previous, entry, robot)
            moved_m, turned_rad = moved_m + metres, turned_rad + radians
            moved_at_all = moved_at_all or metres > 0 or radians > 0
        previous = entry
        checksum = entry.images.get(camera.key)
        if checksum is None or entry.is_repeated or camera.key in entry.blank:
            continue
        frames += 1
        if checksum != last or entry.after_gap:
            run, moved_m, turned_rad, last = 0, 0.0, 0.0, checksum
            continue
        run += 1
        far = moved_m >= limits.frozen_m or turned_rad >= limits.frozen_rad
        what = (
            f"{camera.key} is the same, byte by byte, in {run + 1} frames while the robot moves {moved_m:.2f} m and "
            f"turns {turned_rad:.2f} rad"
        )
        if run >= allowed and far:
            findings.hold("frames.frozen", entry.seq, what, holds=False, frames=run + 1, m=moved_m, rad=turned_rad)
            return
    if moved_at_all and frames > allowed:
        findings.hold("frames.frozen", entries[0].seq, "", holds=True)
    else:
        findings.skip("frames.frozen", "too few frames" if moved_at_all else "the robot stands")


def _motion(before: Entry, after: Entry, robot: RobotSpec) -> tuple[float, float]:
    """Return metres and radians between two observations, by the measured speeds, else by the applied commands."""
    seconds = (after.observation.stamp_ns - before.observation.stamp_ns) * 1e-9
    if not 0 < seconds < 10 * robot.period_s:
        seconds = robot.period_s
    measured = _speeds(after.observation.state, [element.unit for element in robot.state])
    if measured is None and isinstance(before.record, Step):
        measured = _speeds(before.record.action, [element.unit for element in robot.action])
    linear, angular = measured or (0.0, 0.0)
    return linear * seconds, angular * seconds


def _speeds(values: npt.NDArray[np.float32], units: Sequence[str]) -> tuple[float, float] | None:
    if "m/s" not in units and "rad/s" not in units:
        return None
    sizes: Counter[str] = Counter()
    for value, unit in zip(values.tolist(), units, strict=True):
        if unit in {"m/s", "rad/s"}:
            sizes[unit] = max(sizes[unit], abs(value))
    return float(sizes["m/s"]), float(sizes["rad/s"])


def check_pairs(entries: Sequence[Entry], robot: RobotSpec, findings: Findings) -> None:
    """Compare color and depth cameras of one name: both are there or none, and as old within a frame of the slower."""
    keys: dict[str, list[Camera]] = defaultdict(list)
    for camera in robot.cameras:
        keys[camera.name].append(camera)
    for cameras in keys.values():
        if len(cameras) == 2:
            for entry in entries:
                _check_pair(entry, cameras[0], cameras[1], findings)
    if not any(len(cameras) == 2 for cameras in keys.values()):
        findings.skip("frames.time", "no camera has both color and depth")


def _check_pair(entry: Entry, first: Camera, second: Camera, findings: Findings) -> None:
    here = [camera.key for camera in (first, second) if camera.key in entry.images]
    if not here:
        return
    what = f"there is {here[0]} and no other image of that camera"
    if not findings.hold("frames.time", entry.seq, what, holds=len(here) == 2):
        return
    ages = entry.observation.ages_ms
    if first.key not in ages or second.key not in ages:
        findings.skip("frames.time", "the record has no ages of the images: one stamp for both")
        return
    apart = abs(ages[first.key] - ages[second.key])
    most = 1000.0 / max(min(first.rate_hz, second.rate_hz), 1e-3)
    what = f"{first.key} and {second.key} are {apart:.1f} ms apart, a frame takes {most:.1f} ms"
    findings.hold("frames.time", entry.seq, what, holds=apart <= most, apart_ms=apart, most_ms=most)
