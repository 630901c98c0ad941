"""A number drawn into a picture as black and white squares, which a codec leaves readable. Plain Python and numpy."""

import numpy as np

SQUARE, BITS = 16, 36  # 18 squares a row, two rows: from 288 pixels of width on
_ROW = BITS // 2


def draw(luma, number):
    """Writes ``number`` into the top of a grey picture [H, W]."""
    for bit in range(BITS):
        y, x = divmod(bit, _ROW)
        luma[y * SQUARE : (y + 1) * SQUARE, x * SQUARE : (x + 1) * SQUARE] = 235 if number >> bit & 1 else 16


def read(luma):
    """The number in a grey picture."""
    found = 0
    for bit in range(BITS):
        y, x = divmod(bit, _ROW)
        patch = luma[y * SQUARE + 4 : (y + 1) * SQUARE - 4, x * SQUARE + 4 : (x + 1) * SQUARE - 4]
        found |= int(np.mean(patch) > 125) << bit
    return found
