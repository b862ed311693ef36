"""Reads the digits in image files: python -m mnist.predict --workdir=runs/NAME image.png ..."""

import json
import warnings

from mnist import Error, finished
from mnist.command import run
from mnist.metrics import softmax
from mnist.model import make_predict_logits
from mnist.readers import SIDE
from mnist.settings import Setting, local_path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_MAX_PIXELS = 2**24  # an image is decoded whole, to half a GiB at the worst, whatever a small file claims
# Pillow hands EPS files to Ghostscript, which runs them as programs.
Image.init()
_FORMATS = sorted(Image.OPEN.keys() - {"EPS"})
_BOX = 20  # MNIST's digits fill a box of 20x20 within 28x28 (LeCun et al. 1998, p. 10)


def read_image(path):
    """Reads an image file as MNIST would have it: light on dark, scaled to 20x20, centred by mass.

    Grey, colour or transparent, of any size, dark on light or light on dark.

    Returns: uint8 `[28, 28, 1]`. Raises: `mnist.Error` if there is no readable image or no ink.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's; what stops the reading is raised
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise Error(f"{path} has {image.width}x{image.height} pixels, at most {_MAX_PIXELS:,} are read.")
                grey = _flatten(ImageOps.exif_transpose(image))  # [H, W], 0 to 255
    except Error:
        raise
    except UnidentifiedImageError:
        raise Error(f"{path} is not an image file.") from None
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror or error}.") from None
    # Decoders raise what they please on damaged input, a decompression bomb's error among them.
    except Exception as error:
        raise Error(f"{path} is not a sound image file: {str(error).rstrip('.')}.") from None
    ink = _find_ink(grey)
    if ink is None:
        raise Error(f"{path} holds no digit: nothing stands out from the paper.")
    small = _shrink(ink)
    if not small.any():
        raise Error(f"{path} holds no digit: only specks that vanish at {SIDE}x{SIDE} pixels.")
    return _centre(small)


def _flatten(image):
    """Grey levels `[H, W]` of an image, transparency laid on what contrasts with the opaque part."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # 16 bits and more, of any range
        levels = np.asarray(image, np.float64)
        low, high = levels.min(), levels.max()
        if not -1e38 < low <= high < 1e38:  # false for NaN, too
            raise ValueError("its grey levels are not finite")
        return (levels - low) * (255 / max(high - low, 1))
    image = image.convert("RGBA")
    image = image.reduce(max(1, max(image.size) // 1000))  # finer than this is memory and time lost
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    if alpha.min() == 1 or alpha.max() == 0:
        return grey * alpha
    background = 255.0 if (grey * alpha).sum() / alpha.sum() < 128 else 0.0
    return grey * alpha + background * (1 - alpha)


def _find_ink(grey):
    """Ink `[H, W]` from 0 (paper) to 255, cropped to what is drawn; None if nothing is."""
    paper, noise = _estimate_paper(grey)
    ink = grey - paper
    ink[np.abs(ink) <= 3 * noise] = 0
    # Ink is where most of the contrast is: a bright speck on grey paper turns nothing around.
    ink = np.maximum(ink if np.sum(ink * np.abs(ink)) >= 0 else -ink, 0)
    if ink.max() < max(16, 6 * noise):
        return None
    scale = 255 / ink.max()
    ink *= scale
    # What is fainter than a quarter of the darkest ink, or hardly above the noise, frames no digit.
    frame = min(max(64, 6 * noise * scale), 254)
    rows, columns = (np.flatnonzero((ink > frame).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _estimate_paper(grey):
    """Fits a quadratic surface to the border, where the light may be uneven and ink may touch it.

    Returns: the paper's grey levels `[H, W]`, and the standard deviation of its noise.
    """
    rows, columns = (np.linspace(-1, 1, n) for n in grey.shape)
    r, c = (np.broadcast_to(x, grey.shape) for x in (rows[:, np.newaxis], columns))
    border = [np.concatenate([x[0], x[-1], x[1:-1, 0], x[1:-1, -1]]) for x in (grey, r, c)]
    levels, r, c = border
    terms = np.stack([np.ones_like(r), r, c, r * c, r**2, c**2], axis=1)
    errors = np.abs(levels - np.median(levels))
    for _ in range(10):  # least trimmed squares: a quarter of the border may be ink
        near = errors <= np.quantile(errors, 0.75)
        fit = np.linalg.lstsq(terms[near], levels[near], rcond=None)[0].round(6)
        errors = np.abs(levels - terms @ fit)
    across = fit[0] + fit[2] * columns + fit[5] * columns**2
    down = fit[1] * rows + fit[4] * rows**2
    paper = across + down[:, np.newaxis] + fit[3] * np.outer(rows, columns)
    return paper, 1.4826 * np.median(errors)


def _shrink(ink):
    height, width = ink.shape
    scale = _BOX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.round(ink).astype(np.uint8)).resize(size, Image.Resampling.LANCZOS))


def _centre(small):
    mass = small.astype(np.float64)
    image = np.zeros([SIDE, SIDE], np.uint8)
    # MNIST's centres of mass lie within half a pixel of pixel 14, counted from 0.
    corner = []
    for axis in (0, 1):
        centre = (mass.sum(axis=1 - axis) * np.arange(mass.shape[axis])).sum() / mass.sum()
        corner.append(min(max(round(SIDE / 2 - centre), 0), SIDE - mass.shape[axis]))
    top, left = corner
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return image[..., np.newaxis]


class Predict:
    """What predicts, and how its answers are printed."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    json = Setting(False, "Print a JSON list instead of lines.")


def main(options, paths):
    if not paths:
        raise Error("name at least one image file: python -m mnist.predict --workdir=W image.png")
    images = np.stack([read_image(path) for path in paths])
    probabilities = softmax(make_predict_logits(finished.load(options.workdir).model)(images))  # [N, classes]
    digits = probabilities.argmax(axis=1)
    rows = [
        {"file": path, "digit": int(digit), "probability": float(row[digit])}
        for path, digit, row in zip(paths, digits, probabilities, strict=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['file']}: {row['digit']} ({row['probability']:.1%})")


if __name__ == "__main__":
    run(main, Predict, arguments=True)
