"""Image files of any kind, read as grey levels."""

import os
import stat
import warnings

from mnist import Error

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

_MAX_PIXELS = 2**24  # Pillow decodes an image whole. This limits it to half a GiB, whatever a small file claims.
_ALONE = {"MPO", "PSD", "ICO", "ICNS"}  # formats whose further frames are previews, layers or sizes of one picture


def read_sheets(path):
    """Reads an image file as grey levels, in one or several ways.

    Returns: a list of float arrays `[H, W]` from 0 to 255, the plainest first. Further ones show coloured ink with more
      contrast, or 16 bits with their range stretched.
    Raises: `mnist.Error` if the file holds no image that can be read, or several.
    """
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
                frames = getattr(image, "n_frames", 1)
                if frames > 1 and image.format not in _ALONE:
                    raise Error(f"{path}: {frames} pages or frames, expected one: save that with the digit as a PNG.")
                return _flatten(ImageOps.exif_transpose(image))
    except Error:
        raise
    # Pillow's decoders raise any exception on damaged input, for example `DecompressionBombError`.
    except Exception as error:
        if _is_heif(path):
            reason = "a HEIC or AVIF picture, which Pillow cannot read: convert it to PNG or JPEG"
            raise Error(f"{path}: {reason}.") from None
        reason = getattr(error, "strerror", None) or str(error)
        raise Error(f"{path}: not an image that can be read: {reason.rstrip('.')}.") from None


def _is_heif(path):
    """Returns whether a file begins as the HEIF family does, which HEIC and AVIF belong to."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:12] in b"heic heix heif hevc mif1 msf1 avif avis".split()


def _flatten(image):
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits and more, of any range
        levels = np.asarray(image, np.float64)
        low, high = levels.min(), levels.max()
        if not -1e38 < low <= high < 1e38:  # false for NaN, too
            raise ValueError("its grey levels are not finite")
        stretched = (levels - low) * (255 / max(high - low, 1e-9 if image.mode == "F" else 1))
        return [levels / 257, stretched] if low >= 0 and 255 < high < 2**16 else [stretched]
    image = image.convert("RGBA")
    image = image.reduce(max(1, max(image.size) // 1000))  # more pixels would only cost memory and time
    colours = np.asarray(image, np.float32)
    colours, alpha = colours[..., :3], colours[..., 3:] / 255
    paper = _paper_of(colours, alpha[..., 0] > 0.5) if alpha.max() > 0.5 and alpha.min() < 1 else 0
    return _to_grey(colours * alpha + paper * (1 - alpha))


def _paper_of(colours, opaque):
    """Returns the paper behind a transparent picture: its own if it is a card with ink, else one that contrasts."""
    inner = colours[opaque]
    if inner.mean(axis=1).std() < 30:  # the transparent part alone has the shape of the ink
        return 255 if inner.mean() < 128 else 0
    return np.median(colours[opaque & ~ndimage.binary_erosion(opaque)], axis=0)


def _to_grey(colours):
    """Returns the brightness of colours `[H, W, 3]`, and their principal axis if it is another."""
    brightness = np.asarray(Image.fromarray(np.rint(colours).astype(np.uint8)).convert("L"), np.float64)
    if np.ptp(colours, axis=2).max() < 30:
        return [brightness]
    pixels = colours.reshape(-1, 3) - colours.mean((0, 1))
    axis = np.linalg.eigh(pixels.T @ pixels)[1][:, -1]
    axis = axis * (np.sign(axis.sum()) or 1)
    if axis.sum() / np.sqrt(3) > 0.97:
        return [brightness]
    levels = (colours @ axis).astype(np.float64)
    return [brightness, (levels - levels.min()) * (255 / max(np.ptp(levels), 1))]
