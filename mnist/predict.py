"""Digits in image files: python -m mnist.predict --workdir=runs/NAME image.png ..."""

import json
import math

import numpy as np
from absl import flags
from PIL import Image, ImageOps, UnidentifiedImageError

from mnist import Error, checkpoint, run
from mnist.evaluate import make_predict_logits

_MAX_PIXELS = 2**25  # an image is decoded whole: 128 MiB at most, whatever a small file claims
_SIDE = 28
_BOX = 20  # MNIST's digits fill a box of 20x20 within 28x28 (LeCun et al. 1998, p. 10)


def read_image(path):
    """Reads an image file as MNIST would have it: light on dark, scaled to 20x20, centred by mass.

    Grey, colour or transparent, of any size, dark on light or light on dark.

    Returns: uint8 `[28, 28, 1]`. Raises: `mnist.Error` if there is no readable image or no ink.
    """
    try:
        with Image.open(path) as image:
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
        raise Error(f"{path} is not a sound image file: {error}.") from None
    ink = _find_ink(grey)
    if ink is None:
        raise Error(f"{path} holds no digit: all its pixels are alike.")
    return _centre(ink)


def _flatten(image):
    """Grey levels `[H, W]` of an image, transparency laid on what contrasts with the opaque part."""
    if image.mode in ("I", "I;16", "F"):  # 16 bits and more, of any range
        levels = np.asarray(image, np.float32)
        low, high = levels.min(), levels.max()
        return (levels - low) * (255 / max(high - low, 1))
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), np.float32) / 255
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32)
    if alpha.min() == 1 or alpha.max() == 0:
        return grey * alpha
    background = 255.0 if (grey * alpha).sum() / alpha.sum() < 128 else 0.0
    return grey * alpha + background * (1 - alpha)


def _find_ink(grey):
    """Ink `[H, W]` from 0 (paper) to 255, cropped to what is drawn; None if nothing is."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = np.median(border)
    ink = grey - paper
    ink = np.maximum(ink if abs(ink.max()) >= abs(ink.min()) else -ink, 0)
    if ink.max() < 16:
        return None
    ink *= 255 / ink.max()
    # Paper is never even: what is fainter than a quarter of the darkest ink frames no digit.
    rows, columns = (np.flatnonzero((ink > 64).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _centre(ink):
    height, width = ink.shape
    scale = _BOX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(ink.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS))
    mass = small.astype(np.float64)
    image = np.zeros([_SIDE, _SIDE], np.uint8)
    corner = []
    for axis in (0, 1):
        centre = (mass.sum(axis=1 - axis) * np.arange(mass.shape[axis])).sum() / mass.sum()
        corner.append(min(max(math.floor(_SIDE / 2 - centre), 0), _SIDE - mass.shape[axis]))
    top, left = corner
    image[top : top + small.shape[0], left : left + small.shape[1]] = small
    return image[..., np.newaxis]


def main(paths):
    flag = flags.FLAGS
    if not paths:
        raise Error("name at least one image file: python -m mnist.predict --workdir=W image.png")
    images = np.stack([read_image(path) for path in paths])
    model, _ = checkpoint.load_model(flag.workdir)
    logits = np.float64(make_predict_logits(model)(images))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    digits = probabilities.argmax(axis=1)
    rows = [
        {"file": path, "digit": int(digit), "probability": float(row[digit])}
        for path, digit, row in zip(paths, digits, probabilities, strict=True)
    ]
    if flag.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['file']}: {row['digit']} ({row['probability']:.1%})")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_bool("json", False, "Print a JSON list instead of lines.")
    run(main)
