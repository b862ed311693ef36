"""Reads image files of 28x28 pixels in one folder for each class."""

import os
import warnings

from mnist import Error
from mnist.data.readers import MAX_CLASSES, SIDE, empty_aligned, list_some, reading

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm")
_OF_SYSTEMS = ("thumbs.db", "desktop.ini", "__macosx")  # what Windows and macOS put into folders and archives
_OPAQUE = ("L", "1")  # modes of Pillow without colours and without a palette
_MODES = (*_OPAQUE, "LA", "P", "PA", "RGB", "RGBA")
_ORIENTATION = 0x0112  # the number of an EXIF tag


def visible(folder):
    """Returns the sorted names of folders and of files in a folder, two lists, without hidden ones.

    Raises: `mnist.Error` if the folder cannot be read.
    """
    folders, files = [], []
    with reading(folder, "a folder"), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _OF_SYSTEMS:
                (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def find_classes(folder):
    """Returns the names of the sub-folders that hold image files, a tuple: in numeric order if all are integers.

    Otherwise they are sorted as torchvision's `ImageFolder` sorts them.
    """
    names = [name for name in visible(folder)[0] if _holds_images(os.path.join(folder, name))]
    is_numeric = all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if is_numeric else names)


def _holds_images(folder):
    with reading(folder, "a folder"), os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(_ENDINGS) for entry in entries)


def read(folder, classes):
    """Reads the images of all classes, sorted by class and by name.

    Args:
      folder: a str. Its sub-folders are classes, perhaps not all of them.
      classes: a tuple of strings. The sub-folder for each label.

    Returns: images, uint8 `[N, 28, 28, 1]`, and labels, uint8 `[N]`. Raises: `mnist.Error`.
    """
    found, names = visible(folder)[0], []
    if unknown := [name for name in found if name not in classes]:
        raise Error(f"{os.path.join(folder, unknown[0])} holds no images of a training class, of {list_some(classes)}.")
    for name in classes:
        if not name.isprintable() or len(classes) > MAX_CLASSES:
            raise Error(f"{folder} has {len(classes)} classes as {name!r:.50}, expected at most {MAX_CLASSES} names.")
        inner, files = visible(os.path.join(folder, name)) if name in found else ([], [])
        if inner:
            raise Error(f"{os.path.join(folder, name, inner[0])} is a folder, expected the images of class {name}.")
        names.append([os.path.join(folder, name, file) for file in files])
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), list(map(len, names)))
    images = empty_aligned(len(labels) * SIDE * SIDE).reshape(-1, SIDE, SIDE, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of much that it can read
        for image, path in zip(images, (path for paths in names for path in paths), strict=True):
            image[..., 0] = read_grey(path)
    return images, labels


def _open(path):
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:  # whose message repeats the path
        raise Error(f"{path} is not an image that can be read.") from None


def read_grey(path):
    """Returns the grey levels of an image file, uint8 `[28, 28]`."""
    if not os.path.isfile(path):
        raise Error(f"{path} is not a file.")  # reading a pipe may never end
    with reading(path, "an image that can be read"), _open(path) as image:
        convert = f'Image.open(path).convert("L").resize(({SIDE}, {SIDE})).save(path)'
        if image.size != (SIDE, SIDE):
            found = f"{image.width}x{image.height} pixels"
            raise Error(f"{path} has {found}, expected {SIDE}x{SIDE}. Convert a copy of all: {convert}.")
        if getattr(image, "n_frames", 1) > 1:
            raise Error(f"{path} has {image.n_frames} frames, expected one image.")
        if image.mode not in _MODES:
            raise Error(f"{path} is of Pillow's mode {image.mode}, expected 8 bits for a grey level.")
        if image.getexif().get(_ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in _OPAQUE and "transparency" not in image.info:
            return np.asarray(image if image.mode == "L" else image.convert("L"))
        channels = np.asarray(image.convert("RGBA"))
    if channels[..., 3].min() < 255:
        base = 'Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))'
        raise Error(f'{path} is partly transparent. Convert a copy of all: {base}.convert("L").save(path).')
    if (channels[..., :2] != channels[..., 1:3]).any():
        raise Error(f"{path} has colours, expected grey levels. Convert a copy of all: {convert}.")
    return channels[..., 0]
