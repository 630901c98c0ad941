"""Pre-processing as training code has it, with Pillow: what recipes of the benchmarks are held to."""

import numpy as np
from PIL import Image


def _resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR), np.float32)


def stretched(frame: np.ndarray) -> np.ndarray:
    """[3, 64, 64]."""
    pixels = _resized(frame, 64, 64) / 255
    return ((pixels - [0.5, 0.5, 0.5]) / [0.25, 0.25, 0.25]).transpose(2, 0, 1)


def letterboxed(frame: np.ndarray) -> np.ndarray:
    """[3, 288, 320], the picture in the middle of grey."""
    ratio = min(288 / frame.shape[0], 320 / frame.shape[1])
    height, width = round(frame.shape[0] * ratio), round(frame.shape[1] * ratio)
    page = np.full((288, 320, 3), 114, np.float32)
    top, left = (288 - height) // 2, (320 - width) // 2
    page[top : top + height, left : left + width] = _resized(frame, width, height)
    return ((page / 255 - [0.7, 0.6, 0.6]) / 0.2).transpose(2, 0, 1)


def cornered(frame: np.ndarray) -> np.ndarray:
    """[3, 288, 320], the picture in the upper left corner: another trainer's habit."""
    ratio = min(288 / frame.shape[0], 320 / frame.shape[1])
    height, width = round(frame.shape[0] * ratio), round(frame.shape[1] * ratio)
    page = np.full((288, 320, 3), 114, np.float32)
    page[:height, :width] = _resized(frame, width, height)
    return ((page / 255 - [0.7, 0.6, 0.6]) / 0.2).transpose(2, 0, 1)


def interleaved(frame: np.ndarray) -> np.ndarray:
    """[3, 64, 64] by name alone: in memory the channels are innermost."""
    return np.ascontiguousarray(stretched(frame).transpose(1, 2, 0)).reshape(3, 64, 64)
