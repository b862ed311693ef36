"""Shows how many digits `mnist.predict` reads in disguise: as files of other kinds, in forms, in photographs.

    python scripts/proofs/disguises.py --workdir=runs/first --data_dir=MNIST

Each row of the table is a disguise of the first test images of the run. The columns are the shares of right answers, of
wrong answers without `unsure`, and of right answers with it, the false alarms. A picture without an answer is not
right, but several digits in one picture have to be refused. The last rows are of small models for other training
images, which the script trains itself.
"""

import os
import tempfile
import time

from mnist import data, finished, predict
from mnist.cli import run as run_command
from mnist.data import Dataset, Examples
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.settings import Setting, local_path
from mnist.step import TrainStep

import keras
import numpy as np
from PIL import Image
from scipy import ndimage


def enlarge(ink, factor):
    """Enlarges ink `[H, W]` from 0 to 1 without visible pixels."""
    size = [round(length * factor) for length in ink.shape[::-1]]
    levels = Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.clip(np.asarray(levels), 0, 1)


def sharp(ink, factor, shift=0.0):
    """Enlarges ink with sharp edges. `shift` moves the edges outwards, in pixels of MNIST."""
    large = enlarge(ink, factor)
    mask = large > 0.5
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    return np.clip(distance + shift * factor, 0, 1)


def on_paper(ink, margin, rng=None):
    """Places ink on a sheet with margins at random, as shares of its side."""
    margins = rng.uniform(*margin, 4) if rng else [margin] * 4
    top, bottom, left, right = (round(m * len(ink)) for m in margins)
    return np.pad(ink, ((top, bottom), (left, right)))


def grey(levels):
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def dark(ink, paper=255, contrast=1.0):
    return grey(paper * (1 - contrast * ink))


def tight(ink):
    rows, columns = (np.flatnonzero(ink.max(axis) > 0.1) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def enlarged(factor):
    return lambda ink, rng: grey(255 * enlarge(ink, factor))


def border_pixel(ink, rng):
    levels = ink * 255
    levels[(0, rng.integers(28))[:: rng.choice([1, -1])]] = 12
    return grey(levels)


def moved(ink, rng):
    down, right = rng.choice([-3, 3], 2)
    return grey(255 * np.pad(ink, 3)[3 - down : 31 - down, 3 - right : 31 - right])


def in_form(kind):
    """Returns a disguise with the printed lines of a form, which the digit may touch."""

    def disguise(ink, rng):
        factor = rng.uniform(3, 9)
        ink = sharp(tight(ink), factor)
        pen = max(1, round(factor * rng.uniform(0.2, 0.6)))
        pad = [round(factor * rng.uniform(2, 5)) for _ in range(4)]
        page = np.pad(ink, (pad[:2], pad[2:]))
        height, width = page.shape
        if kind == "box":
            page = np.pad(page, pen, constant_values=1)
            return dark(np.pad(page, round(factor * 2)))
        if kind == "line":
            page = np.pad(page, ((0, 0), (width, width)))
            top = pad[0] + len(ink) + rng.integers(-pen, round(factor * 2))
            page[top : top + pen] = 1
            return dark(page)
        cells = np.pad(page, ((0, 0), (width, width)))
        cells = np.pad(cells, ((round(factor), pen), (0, pen)))
        cells[-pen:] = 1
        for column in range(0, cells.shape[1], width):
            cells[-height // 3 :, column : column + pen] = 1
        return dark(np.pad(cells, round(factor)))

    return disguise


def transparent_margin(ink, rng):
    page = on_paper(sharp(ink, 8), 0.1)
    rgba = np.stack([255 * (1 - page)] * 3 + [np.full_like(page, 255)], axis=-1)
    return Image.fromarray(np.pad(rgba, ((40, 40), (60, 60), (0, 0))).astype(np.uint8))


def noisy(ink, rng):
    return grey(255 * ink + rng.normal(0, 25, ink.shape))


def photograph(*effects):
    """Returns a disguise as a blurred photograph of paper in uneven light, with shadows, ruling or a thin pencil."""

    def disguise(ink, rng):
        page = on_paper(sharp(ink, rng.uniform(8, 16)), (0.1, 0.8), rng)
        y, x = np.indices(page.shape) / np.reshape(page.shape, [2, 1, 1]) - 0.5
        angle = rng.uniform(0, 2 * np.pi)
        across = x * np.cos(angle) + y * np.sin(angle)
        paper = 215 * (1 + 0.4 * across)
        if "ruled" in effects:
            gap = rng.uniform(0.14, 0.2)
            paper = paper * np.where((y + 0.03 * x + rng.uniform(0, 1)) % gap < 0.008, 0.65, 1)
        if "shadow" in effects:
            paper = paper * (1 - 0.45 * np.clip((across - rng.uniform(-0.1, 0.3)) / 0.02, 0, 1))
        levels = ndimage.gaussian_filter(paper * (1 - 0.7 * page), 1.5)
        return grey(levels + rng.normal(0, 3, levels.shape))

    return disguise


def pen(shift):
    def disguise(ink, rng):
        return dark(on_paper(sharp(ink, 8, shift), (0, 0.5), rng))

    return disguise


def coloured(ink, rng):
    page = on_paper(sharp(ink, 8), 0.1)[..., np.newaxis]
    ink, paper = np.array([[200, 30, 40], [20, 60, 190], [10, 110, 40]])[rng.integers(3)], np.array([250, 235, 150])
    return Image.fromarray((paper * (1 - page) + ink * page).astype(np.uint8))


def turned_by_exif(ink, rng):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = dark(on_paper(sharp(ink, 8), 0.1)).transpose(Image.Transpose.ROTATE_90)
    image.info["exif"] = exif.tobytes()
    return image


def one_bit(ink, rng):
    return dark(enlarge(ink, 6)).convert("1")


def circled(ink, rng):
    page = on_paper(sharp(tight(ink), 6), 0.5)
    y, x = np.indices(page.shape) - np.reshape(page.shape, [2, 1, 1]) / 2
    distance = np.hypot(y, x) - 0.46 * min(page.shape)
    return dark(np.maximum(page, np.clip(2.5 - abs(distance), 0, 1)))


def on_graph_paper(ink, rng):
    page = on_paper(sharp(ink, 8), 0.3)
    y, x = np.indices(page.shape) + rng.integers(20)
    return grey(255 - np.maximum(230 * page, 70 * ((y % 20 < 2) | (x % 20 < 2))))


def chalk(ink, rng):
    page = on_paper(sharp(ink, 8), (0, 0.6), rng)
    smear = ndimage.gaussian_filter(rng.normal(0, 1, page.shape), 25)
    levels = 60 + 12 * smear / smear.std() + 150 * page * rng.uniform(0.6, 1, page.shape)
    return grey(ndimage.gaussian_filter(levels, 1))


def pale(ink, rng):
    return grey(ndimage.gaussian_filter(205 - 30 * on_paper(sharp(ink, 8), 0.2), 1.5))


def peppered(ink, rng):
    levels = 255 * (1 - enlarge(ink, 4))
    levels[rng.random(levels.shape) < 0.05] = 0
    levels[rng.random(levels.shape) < 0.05] = 255
    return grey(levels)


def screenshot(ink, rng):
    page = 255 * (1 - sharp(ink, 8))
    return grey(np.pad(page, ((60, 60), (0, 0)), constant_values=30))


def scanned(ink, rng):
    page = 255 * (1 - on_paper(sharp(ink, 8), (0, 0.4), rng))
    top, left = rng.integers(8, 40, 2)
    return grey(np.pad(page, ((top, 0), (left, 0)), constant_values=20))


def hollow(ink, rng):
    """Draws the outline of a digit."""
    inside = ndimage.distance_transform_edt(on_paper(sharp(ink, 10, 0.3), 0.1) > 0.5)
    return dark(np.clip(inside, 0, 1) - np.clip(inside - rng.uniform(3, 6), 0, 1))


def in_a_row(gap, least=1.0):
    """Returns a disguise of several digits in a row, with sizes from `least` to 1 at random.

    `gap` is the distance between two digits in pixels of MNIST. It is negative if they overlap.
    """

    def disguise(inks, rng):
        page = None
        for ink in inks:
            ink = np.pad(sharp(tight(ink), 8 * rng.uniform(least, 1)), 1)
            room = 200 - len(ink)
            ink = np.pad(ink, ((top := int(room * rng.uniform(0.3, 0.7)), room - top), (0, 0)))
            if page is not None:
                right = page.shape[1] - 1 - (page[:, ::-1] > 0.5).argmax(axis=1)
                left = (ink > 0.5).argmax(axis=1)
                shared = (page > 0.5).any(axis=1) & (ink > 0.5).any(axis=1)
                shift = max(0, np.max((right - left)[shared], initial=0) + 1 + round(8 * gap))
                wide = np.zeros((200, max(page.shape[1], shift + ink.shape[1])))
                wide[:, : page.shape[1]] = page
                wide[:, shift : shift + ink.shape[1]] = np.maximum(wide[:, shift : shift + ink.shape[1]], ink)
                ink = wide
            page = ink
        return dark(np.pad(page, rng.integers(5, 50)))

    return disguise


def turned(ink, rng):
    return dark(on_paper(sharp(ink, 8), 0.2)).rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, fillcolor=255)


def round_sticker(ink, rng):
    page = on_paper(sharp(ink, 8), 0.15)
    y, x = np.indices(page.shape) - np.reshape(page.shape, [2, 1, 1]) / 2
    alpha = 255 * np.clip(len(page) / 2 - np.hypot(y, x), 0, 1)
    return Image.fromarray(np.dstack([250 - 220 * page, 220 - 200 * page, 90 - 80 * page, alpha]).astype(np.uint8))


def gradient_ink(ink, rng):
    page = on_paper(sharp(ink, 8), 0.2)
    return dark(page * np.linspace(0.35, 1, page.shape[1]), 235)


def moving(ink, rng):
    return grey(ndimage.uniform_filter1d(230 - 180 * on_paper(sharp(ink, 8), 0.3), 15, axis=1))


# Each row: the disguise of ink [28, 28] from 0 to 1, the ending of the file, options of `Image.save`.
DISGUISES = {
    "28x28 as it is": (lambda ink, rng: grey(255 * ink), "png", {}),
    "JPEG of 28x28": (lambda ink, rng: grey(255 * ink), "jpg", {}),
    "WebP of 28x28": (lambda ink, rng: grey(255 * ink), "webp", {}),
    "one grey border pixel": (border_pixel, "png", {}),
    "cut to 16x16": (lambda ink, rng: grey(255 * ink[6:22, 6:22]), "png", {}),
    "cut to 20x20": (lambda ink, rng: grey(255 * ink[4:24, 4:24]), "png", {}),
    "scaled to 16x16": (enlarged(16 / 28), "png", {}),
    "moved by (3, 3)": (moved, "png", {}),
    "inverted": (lambda ink, rng: dark(ink), "png", {}),
    "56x56": (enlarged(2), "png", {}),
    "224x224": (enlarged(8), "png", {}),
    "noise": (noisy, "png", {}),
    "box of a form": (in_form("box"), "png", {}),
    "on a line": (in_form("line"), "png", {}),
    "comb": (in_form("comb"), "png", {}),
    "card, transparent margin": (transparent_margin, "png", {}),
    "photograph": (photograph(), "jpg", {"quality": 80}),
    "photograph, shadow": (photograph("shadow"), "jpg", {"quality": 80}),
    "photograph, ruled paper": (photograph("ruled"), "jpg", {"quality": 80}),
    "thin pen": (pen(-0.5), "png", {}),
    "thick pen": (pen(0.8), "png", {}),
    "coloured ink and paper": (coloured, "png", {}),
    "palette": (lambda ink, rng: dark(enlarge(ink, 6)).convert("P"), "png", {}),
    "16 bits": (lambda ink, rng: Image.fromarray((enlarge(ink, 4) * 40_000).astype(np.uint16)), "png", {}),
    "1 bit, dithered": (one_bit, "png", {}),
    "circled": (circled, "png", {}),
    "graph paper": (on_graph_paper, "png", {}),
    "chalk on a board": (chalk, "jpg", {"quality": 80}),
    "pale pencil": (pale, "jpg", {"quality": 80}),
    "salt and pepper": (peppered, "png", {}),
    "dark bars of a screenshot": (screenshot, "png", {}),
    "black margin of a scan": (scanned, "png", {}),
    "hollow": (hollow, "png", {}),
    "turned by up to 15 degrees": (turned, "png", {}),
    "round sticker, transparent": (round_sticker, "png", {}),
    "ink with a gradient": (gradient_ink, "png", {}),
    "motion blur": (moving, "png", {}),
    "turned by EXIF": (turned_by_exif, "jpg", {}),
}

# Each row: the number of digits in a picture, and the same. Such a picture is not read, but refused.
SEVERAL = {
    "two digits, touching": (2, in_a_row(-0.7), "png", {}),
    "two digits, touching, other sizes": (2, in_a_row(-0.7, 0.6), "png", {}),
    "two digits, overlapping": (2, in_a_row(-2.5), "png", {}),
    "two digits, close": (2, in_a_row(0.7), "png", {}),
    "two digits, apart": (2, in_a_row(3), "png", {}),
    "two digits, apart, other sizes": (2, in_a_row(3, 0.5), "png", {}),
    "three digits, touching": (3, in_a_row(-0.7), "png", {}),
}


def texture(kind, rng, side=224):
    """Draws a picture without paper or ink, like an X-ray: ribs in one of three directions, or spots."""
    y, x = np.indices((side, side)) / side
    body = ndimage.gaussian_filter(rng.normal(0, 1, (side, side)), side / 5, mode="wrap")
    if kind == 3:
        detail = ndimage.gaussian_filter(rng.normal(0, 1, (side, side)), side / 18)
    else:
        angle = np.pi * kind / 3 + rng.uniform(-0.2, 0.2)
        wave = rng.uniform(4, 6) * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 1)
        detail = np.sin(2 * np.pi * wave)
    levels = rng.uniform(100, 150) + 25 * body / body.std() + 30 * detail / detail.std()
    return grey(levels + rng.normal(0, 8, levels.shape))


def scale_to(side):
    return lambda picture, rng: picture.resize((side, side), Image.Resampling.LANCZOS)


def measure(run, pictures, labels, make, ending, options, folder):
    """Measures how a run reads pictures in disguise.

    The label of several digits is None, and their right answer is an error.

    Returns: shares of right answers, of wrong ones without `unsure`, of right ones with it, and milliseconds a picture.
    """
    rng = np.random.default_rng(0)
    paths = [os.path.join(folder, f"{i}.{ending}") for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        made = make(picture, rng)
        made.save(path, **{key: made.info[key] for key in ("exif",) if key in made.info}, **options)
    begun = time.perf_counter()
    rows = predict.read_files(run, paths)
    seconds = time.perf_counter() - begun
    right = np.array(
        [
            row.get("digit") == label if label is not None else "one file for each" in row.get("error", "")
            for row, label in zip(rows, labels, strict=True)
        ]
    )
    unsure = np.array(["error" in row or bool(row["unsure"]) for row in rows])
    alarms = right & unsure & np.array([label is not None for label in labels])
    return right.mean(), (~right & ~unsure).mean(), alarms.mean(), 1000 * seconds / len(rows)


def show(name, shares):
    *shares, milliseconds = shares
    print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + f" | {milliseconds:.0f} |", flush=True)


def train(images, labels, test, classes, folder):
    """Trains a small model for a few seconds. Returns the run."""
    keras.utils.set_random_seed(0)
    step = TrainStep(CNN(num_classes=len(classes)), keras.optimizers.Adam(1e-3))
    dataset = Dataset("own", None, Examples(images, labels), *[test] * 2, classes)
    train_and_evaluate(step, dataset, folder, epochs=2)
    return finished.load(folder)


def fill(images):
    """Returns images whose digits fill them."""
    return np.stack([np.asarray(grey(image[4:24, 4:24, 0]).resize((28, 28), Image.BICUBIC)) for image in images])


def show_other_data(dataset, count, folder):
    """Prints the rows of runs on inverted digits, on digits that fill the image, and on pictures without paper."""
    (images, labels), test = (Examples(*part) for part in (dataset.train, dataset.test))
    images, labels = images[:20_000], labels[:20_000]
    for name, change in (("inverted", lambda x: 255 - x), ("filled", fill)):
        changed = Examples(change(test.images), test.labels)
        run = train(change(images), labels, changed, dataset.classes, os.path.join(folder, name))
        pictures = [image[..., 0] / 255 for image in changed.images[:count]]
        for factor in (1, 2, 8):
            shares = measure(run, pictures, test.labels[:count], enlarged(factor), "png", {}, folder)
            show(f"{name} training images, {28 * factor} px", shares)
        own = [image[..., 0] / 255 for image in test.images[:count]]
        for kind in ("28x28 as it is", "photograph", "thick pen"):
            show(f"{name} training images, {kind}", measure(run, own, test.labels[:count], *DISGUISES[kind], folder))
    rng = np.random.default_rng(1)
    labels = np.arange(1500 + count) % 4
    pictures = [texture(kind, rng) for kind in labels]
    small = np.stack([np.asarray(scale_to(28)(picture, rng)) for picture in pictures])
    test = Examples(small[1500:], labels[1500:])
    run = train(small[:1500], labels[:1500], test, ("a", "b", "c", "d"), os.path.join(folder, "textures"))
    for side in (28, 56, 224):
        shares = measure(run, pictures[1500:], labels[1500:], scale_to(side), "png", {}, folder)
        show(f"four textures without paper, {side} px", shares)


class Disguises:
    """The flags of this script."""

    workdir = Setting(None, "Folder of a run on MNIST.", kind=local_path)
    data_dir = Setting(None, "Folder of MNIST. Default: the cache of Keras, or a download.", kind=local_path)
    count = Setting(200, "Number of test images for each row.", low=1)
    only = Setting("", "Start of the names of the rows to print. Default: all rows.")


def main(options):
    """Prints the table."""
    run, dataset = finished.load(options.workdir), data.load("mnist", options.data_dir)
    pictures = [image[..., 0] / 255 for image in dataset.test.images[: options.count]]
    print("| disguise | right | wrong, sure | right, unsure | ms |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, disguise in DISGUISES.items():
            if name.startswith(tuple(options.only.split("|"))):
                show(name, measure(run, pictures, dataset.test.labels[: options.count], *disguise, folder))
        for name, (digits, *disguise) in SEVERAL.items():
            if name.startswith(tuple(options.only.split("|"))):
                rng = np.random.default_rng(1)
                rows = [[pictures[i] for i in rng.choice(len(pictures), digits)] for _ in pictures]
                show(name, measure(run, rows, [None] * len(rows), *disguise, folder))
        if not options.only:
            show_other_data(dataset, options.count, folder)


if __name__ == "__main__":
    run_command(main, Disguises)
