"""The inner loop of the palette codec in compiled code: what ``protocol.images`` does in numpy, in a third of the time.

Only trainers have numba; robots encode depth and never decode it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protocol import images
from trainerd.compiled import njit

if TYPE_CHECKING:
    import numpy.typing as npt


@njit
def unpalette(
    low: npt.NDArray[np.uint8],
    high: npt.NDArray[np.uint8],
    palette: npt.NDArray[np.uint16],
    out: npt.NDArray[np.uint16],
) -> int:
    """Decode uint8[H * W] low and high bytes of zigzag 2-D differences of ranks into ``out``, uint16[H, W].

    Returns:
        The highest rank that stood there; where it is no rank of the palette, ``out`` is not to be used.

    """
    height, width = out.shape
    table = np.zeros(65536, np.uint16)  # any rank finds a place, so the loop need not ask
    table[: palette.size] = palette
    above, change = np.zeros(width, np.uint16), np.empty(width, np.uint16)
    one, eight, highest = np.uint16(1), np.uint16(8), np.uint16(0)
    for row in range(height):  # each loop over a row does one thing, so that all but the sum use vectors
        first = row * width
        low_row, high_row, out_row = low[first : first + width], high[first : first + width], out[row]
        for column in range(width):
            zigzag = np.uint16(low_row[column]) | np.uint16(np.uint16(high_row[column]) << eight)
            change[column] = np.uint16(np.uint16(zigzag >> one) ^ np.uint16(-(zigzag & one)))
        total = np.uint16(0)
        for column in range(width):
            total = np.uint16(total + change[column])
            change[column] = total
        for column in range(width):
            above[column] = np.uint16(above[column] + change[column])
        for column in range(width):
            highest = max(highest, above[column])
        for column in range(width):
            out_row[column] = table[above[column]]
    return int(highest)


def install() -> None:
    """Let ``protocol.images`` decode with it from now on; compiles it where no cache has it."""
    low, out = np.zeros(1, np.uint8), np.zeros((1, 1), np.uint16)
    unpalette(low, low, np.zeros(1, np.uint16), out)  # now, and not under the first record
    images.use_unpalette(unpalette)
