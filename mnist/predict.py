"""Reads the digits in image files: python -m mnist.predict --workdir=runs/NAME image.png ...

A picture becomes what the network was trained on. One of 28x28 that is framed as MNIST frames its own stays as it is,
and any of 28x28 where the run's training images are not framed so; all others are cropped to the ink, scaled to
20x20 and centred, light on dark.
"""

import json
import os
import stat
import tempfile
import warnings

from mnist import Error, files, finished
from mnist.cli import run
from mnist.data import BOX, DIGITS, SIDE, find_ink, is_framed
from mnist.metrics import softmax
from mnist.model import make_predict_logits
from mnist.settings import Setting, local_path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_MAX_PIXELS = 2**24  # an image is decoded whole, to half a GiB at the worst, whatever a small file claims
# Pillow hands EPS files to Ghostscript, which runs them as programs.
Image.init()
_FORMATS = sorted(Image.OPEN.keys() - {"EPS"})
_SURE = 0.7  # of MNIST's test set, 57 % of the wrong answers are less probable, and 0.9 % of the right ones


def read_image(path, framed=True):
    """Reads an image file as MNIST would have it: light on dark, scaled to 20x20, centred by mass.

    Grey, colour or transparent, of any size, dark on light or light on dark; a picture in MNIST's format as it is.

    Args:
      path: the file.
      framed: whether MNIST's frame is that of the training images, `finished.Run.framed`. If not, a picture of 28x28
        is taken for one of these: its grey levels stay as they are.

    Returns: uint8 `[28, 28, 1]`. Raises: `mnist.Error` if there is no readable image or no ink.
    """
    return _read(path, framed)[0]


def _read(path, framed=True):
    """Returns: what `read_image` does, and why it may not be one digit, in a word or two, or None."""
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode) or stat.S_ISCHR(os.stat(path).st_mode):
            raise Error(f"{path}: not a file, but a pipe or a device.")  # which may never end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's; what stops the reading is raised
            with Image.open(path, formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise Error(f"{path}: {image.width}x{image.height} pixels, at most {_MAX_PIXELS:,} are read.")
                grey = _flatten(ImageOps.exif_transpose(image))  # [H, W], 0 to 255
    except Error:
        raise
    except UnidentifiedImageError:
        raise Error(f"{path}: not an image file.") from None
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}.") from None
    # Decoders raise what they please on damaged input, a decompression bomb's error among them.
    except Exception as error:
        raise Error(f"{path}: not a sound image file: {str(error).rstrip('.')}.") from None
    if not framed and grey.shape == (SIDE, SIDE):
        return np.rint(grey).astype(np.uint8)[..., np.newaxis], None
    ink = find_ink(grey)
    if ink is None:
        raise Error(f"{path}: holds no digit: nothing stands out from the paper.")
    small = _shrink(ink.levels)
    if not small.any():
        raise Error(f"{path}: holds no digit: only specks that vanish at {SIDE}x{SIDE} pixels.")
    as_it_is = grey.shape == (SIDE, SIDE) and not (grey % 1).any() and is_framed(grey)
    return grey.astype(np.uint8)[..., np.newaxis] if as_it_is else _centre(small), _doubt(ink, small)


def _doubt(ink, small):
    """Why the ink does not look like one digit, or None. Each bound passes 998 of 1,000 training digits of MNIST."""
    if ink.has_several_parts():
        return "several parts"
    height, width = ink.levels.shape
    if small.sum() > 0.62 * 255 * BOX**2:
        return "more ink than strokes"
    if width > 1.7 * height or height > 12 * width:
        return "too wide" if width > height else "too narrow"
    return None


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


def _shrink(ink):
    height, width = ink.shape
    scale = BOX / max(height, width)
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
    checkpoint = finished.which_checkpoint()
    json = Setting(False, "Print a JSON list instead of lines.")
    save_input = Setting(None, "Folder to write what the network saw of each file to, as a PNG.", kind=local_path)


def main(options, paths):
    if not paths:
        raise Error("name at least one image file: python -m mnist.predict --workdir=W image.png")
    if options.save_input:
        with files.write_errors(f"write to --save_input={options.save_input}"):
            os.makedirs(options.save_input, exist_ok=True)
            tempfile.TemporaryFile(dir=options.save_input).close()
    trained = finished.load(options.workdir, options.checkpoint)
    predict_logits = make_predict_logits(trained.model)
    rows = []
    for number, path in enumerate(paths, 1):
        try:
            image, doubt = _read(path, trained.framed)
        except Error as error:
            rows.append({"file": path, "error": str(error).removeprefix(f"{path}: ")})
            continue
        probabilities = softmax(predict_logits(image[np.newaxis]).numpy())[0]
        row = _row(path, probabilities, trained.classes, doubt)
        if options.save_input:
            name = f"{number:04d}_{os.path.splitext(os.path.basename(path))[0][:50]}.png"  # a name may have 255 bytes
            row["input"] = os.path.join(options.save_input, name)
            with files.write_errors(f"write {row['input']}"):
                Image.fromarray(image[..., 0]).save(row["input"])
        rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(_line(row))
    return 1 if any("error" in row for row in rows) else 0


def _row(path, probabilities, classes, doubt):
    """What is told of a file; `probabilities` are `[classes]`."""
    best = [int(i) for i in np.argsort(-probabilities, kind="stable")[:3]]
    top = [{"class": classes[i], "probability": float(probabilities[i])} for i in best]
    if classes != DIGITS:
        doubt = None  # what digits look like says nothing of shoes
    if probabilities[best[0]] < _SURE:
        doubt = doubt or "low probability"
    return {"file": path, "digit": best[0], **top[0], "top": top, "unsure": doubt}


def _line(row):
    if "error" in row:
        return f"{row['file']}: error: {row['error']}"
    first, *others = [(best["class"], f"{best['probability']:.1%}") for best in row["top"]]
    line = f"{row['file']}: {first[0]} ({first[1]})" + "".join(f", {name} {share}" for name, share in others)
    return f"{line}  unsure: {row['unsure']}" if row["unsure"] else line


if __name__ == "__main__":
    run(main, Predict, arguments=True)
