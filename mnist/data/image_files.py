"""Image files of any kind, read as digits in MNIST's format."""

import os
import stat
import warnings

from mnist import Error
from mnist.data.dataset import BOX, is_framed
from mnist.data.readers import SIDE

import numpy as np
from PIL import Image, ImageOps

_MAX_PIXELS = 2**24  # Pillow decodes an image whole. This limits it to half a GiB, whatever a small file claims.


def read_image(path, framed=True):
    """Reads an image file as MNIST would have it: light on dark, scaled to 20x20, centred by mass.

    The picture may be grey, coloured or transparent, of any size, dark on light or light on dark. A picture in MNIST's
    format stays as it is. So does any of 28x28 if the training images are not `framed`, see `finished.Run.framed`.

    Returns: uint8 `[28, 28, 1]`. Raises: `mnist.Error` if the file holds no readable image or no ink.
    """
    return read_digit(path, framed)[0]


def read_digit(path, framed=True):
    """Reads an image file. Returns: the result of `read_image`, and why it may not be one digit, as a str or None."""
    grey = _read_grey(path)
    if not framed and grey.shape == (SIDE, SIDE):
        return np.rint(grey).astype(np.uint8)[..., np.newaxis], None
    from mnist.data.ink import find_ink  # imports scipy.ndimage, which training does without

    ink = find_ink(grey)
    if ink is None:
        raise Error(f"{path}: holds no digit: nothing stands out from the paper.")
    small = _shrink(ink.levels)
    if not small.any():
        raise Error(f"{path}: holds no digit: only specks that vanish at {SIDE}x{SIDE} pixels.")
    is_mnist = grey.shape == (SIDE, SIDE) and not (grey % 1).any() and is_framed(grey)
    return grey.astype(np.uint8)[..., np.newaxis] if is_mnist else _centre(small), _doubt(ink, small)


def _read_grey(path):
    """Returns the grey levels of an image file, `[H, W]` from 0 to 255."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):  # reading one may never end
            raise Error(f"{path}: not a file, but a pipe or a device.")
        Image.init()
        formats = sorted(Image.OPEN.keys() - {"EPS"})  # Pillow would let Ghostscript run EPS files as programs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of much that it can read
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise Error(f"{path}: {image.width}x{image.height} pixels, at most {_MAX_PIXELS:,} are read.")
                return _flatten(ImageOps.exif_transpose(image))
    except Error:
        raise
    # Pillow's decoders raise any exception on damaged input, for example `DecompressionBombError`.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Error(f"{path}: not an image that can be read: {reason.rstrip('.')}.") from None


def _flatten(image):
    """Returns the grey levels `[H, W]` of an image, on a background that contrasts with its opaque part."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits and more, of any range
        levels = np.asarray(image, np.float64)
        low, high = levels.min(), levels.max()
        if not -1e38 < low <= high < 1e38:  # false for NaN, too
            raise ValueError("its grey levels are not finite")
        return (levels - low) * (255 / max(high - low, 1))
    image = image.convert("RGBA")
    image = image.reduce(max(1, max(image.size) // 1000))  # more pixels would only cost memory and time
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    if alpha.min() == 1 or alpha.max() == 0:
        return grey * alpha
    background = 255.0 if (grey * alpha).sum() / alpha.sum() < 128 else 0.0
    return grey * alpha + background * (1 - alpha)


def _shrink(ink):
    """Scales ink `[H, W]` so that its longer side has 20 pixels."""
    height, width = ink.shape
    scale = BOX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.round(ink).astype(np.uint8)).resize(size, Image.Resampling.LANCZOS))


def _centre(small):
    """Places ink in an image `[28, 28, 1]` with its centre of mass at pixel 14, as in MNIST."""
    image = np.zeros([SIDE, SIDE, 1], np.uint8)
    lengths = small.shape
    centres = (np.average(np.arange(lengths[axis]), weights=small.sum(1 - axis, np.float64)) for axis in (0, 1))
    top, left = np.clip([round(SIDE / 2 - centre) for centre in centres], 0, SIDE - np.array(lengths))
    image[top : top + lengths[0], left : left + lengths[1], 0] = small
    return image


def _doubt(ink, small):
    """Returns why the ink may not be one digit, or None. Each bound passes 998 of 1,000 training digits of MNIST."""
    height, width = ink.levels.shape
    found = {
        "several parts": ink.has_several_parts(),
        "more ink than strokes": small.sum() > 0.62 * 255 * BOX**2,
        "too wide": width > 1.7 * height,
        "too narrow": height > 12 * width,
    }
    return next((reason for reason in found if found[reason]), None)
