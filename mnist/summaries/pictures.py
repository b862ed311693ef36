"""The pictures of a run, for TensorBoard, for PNG files and for notebooks.

A picture is a `PIL.Image.Image`. Pillow draws all except the curves, because matplotlib needs half a second for one.
They are at most 350 pixels wide, the width of TensorBoard's card: it scales wider pictures without smoothing.
"""

import math
import os

from mnist.data import DIGITS
from mnist.files import write_errors
from mnist.metrics import count_confusions, example_losses, softmax
from mnist.model import make_predict_logits
from mnist.summaries.canvas import BLUE, FONT, GREY, LINE, RED, WIDTH, cut, drawable, grid, mix, write_upwards
from mnist.summaries.curves import draw_curves

import keras
import numpy as np
from PIL import Image, ImageDraw

_ARROW = 16  # width in pixels of the arrow between label and prediction, a sign that the font lacks
_MAX_NAME = 62  # largest width in pixels of the name of a class: "Ankle boot" has 56
_MAX_SHOWN = 25  # largest number of mistakes, and of bars
_MAX_FILTERS = 256


def draw_run(model, examples, classes, runs):
    """Draws all pictures of one run: of a `keras.Model`, the test `data.Examples`, and the `runs` of `draw_curves`.

    Returns: a dict of pictures by name. It has no filters if the model has no convolution of the image.
    """
    logits = make_predict_logits(model)(examples.images).numpy()
    predictions = logits.argmax(axis=1)
    pictures = {
        "curves": draw_curves(runs),
        "confusion_matrix": draw_confusions(count_confusions(examples.labels, predictions, len(classes)), classes),
        "examples": draw_examples(examples, logits, classes),
        "mistakes": draw_mistakes(examples, logits, classes),
        "accuracies": draw_accuracies(examples.labels, predictions, classes),
        "filters": draw_filters(model),
    }
    return {name: picture for name, picture in pictures.items() if picture}


def save_pictures(pictures, directory):
    """Writes each picture of a dict to `<directory>/<name>.png`. Returns: a list of the paths."""
    paths = [os.path.join(directory, f"{name}.png") for name in pictures]
    with write_errors(f"write to {directory}"):
        os.makedirs(directory, exist_ok=True)
        for path, picture in zip(paths, pictures.values(), strict=True):
            picture.save(path)
    return paths


def draw_confusions(matrix, classes=DIGITS):
    """Draws a confusion matrix, integers `[classes, classes]` with a row for each label.

    Hits are blue and mistakes red, darker for a larger share of the row. Counts and names appear where they fit. From
    55 classes on, the numbers of some classes replace the names.
    """
    num_classes, names = len(matrix), drawable(classes)
    # Names every class, every second one, or those with a round number.
    every = next((n for n in (1, 2, 5, 10) if 300 * n / num_classes >= (11 if n < 5 else 22)), 20)
    names = [cut(name, _MAX_NAME) for name in names] if every < 5 else list(map(str, range(num_classes)))
    margin = LINE + 9 + round(max(map(FONT.getlength, names)))
    cell = max(1, min(70, (WIDTH - margin - 1) // num_classes))
    side = num_classes * cell
    colours = _colour_shares(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1), cell)
    canvas = Image.new("RGB", (margin + side + 1, margin + side + 1), "white")
    draw = ImageDraw.Draw(canvas)
    canvas.paste(Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST), (margin, margin))
    draw.rectangle((margin - 1, margin - 1, margin + side, margin + side), outline="lightgrey")
    for line in range(margin + cell, margin + side, cell) if cell >= 5 else ():
        draw.line((margin, line, margin + side, line), "lightgrey")
        draw.line((line, margin, line, margin + side), "lightgrey")
    draw.text((margin + side / 2, 1), "prediction", GREY, FONT, anchor="ma")
    write_upwards(canvas, 7, margin + side / 2 + 14, "label", GREY)
    upright = all(FONT.getlength(name) <= every * cell - 2 for name in names)
    for i in range(0, num_classes, every):
        middle = margin + (i + 0.5) * cell
        draw.text((margin - 4, middle), names[i], "black", FONT, anchor="rm")
        if upright:
            draw.text((middle, margin - 4), names[i], "black", FONT, anchor="ms")
        else:
            write_upwards(canvas, middle, margin - 4, names[i])
    counts = {(i, j): matrix[i, j] for i, j in np.argwhere(matrix)} if cell >= 12 else {}
    counts = {place: str(n) if n < 10_000 else f"{n // 1000}k" for place, n in counts.items()}
    if all(FONT.getlength(text) < cell for (i, j), text in counts.items() if i != j):
        for (i, j), text in counts.items():
            if FONT.getlength(text) < cell:
                colour = "white" if colours[i, j].mean() < 150 else "black"
                draw.text((margin + (j + 0.5) * cell, margin + (i + 0.5) * cell), text, colour, FONT, anchor="mm")
    return canvas


def _colour_shares(shares, cell):
    """Returns the colours, uint8 `[classes, classes, 3]`, of cells with a side of `cell` pixels."""
    is_hit = np.eye(len(shares), dtype=bool)
    # The root makes few mistakes visible beside thousands of hits. A small cell needs a strong colour.
    least = 0.15 if cell >= 12 else 0.5 if cell >= 3 else 0.9
    return mix(shares * is_hit, np.where((shares > 0) & ~is_hit, least + (1 - least) * shares**0.5, 0))


def draw_mistakes(examples, logits, classes=DIGITS):
    """Draws up to 25 mistakes, largest loss first: label, prediction and its probability above each image.

    Takes `data.Examples` and their logits `[N, classes]`. Writes long names in two lines.
    """
    labels, predictions = np.asarray(examples.labels), np.argmax(logits, axis=1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-example_losses(logits[wrong], labels[wrong]), kind="stable")[:_MAX_SHOWN]]
    title = f"{_some(len(worst), len(wrong), 'mistakes')} in {len(labels):,} images"
    return _draw_answers(examples, logits, classes, worst, title) if len(worst) else grid([], title, 1)[0]


def draw_examples(examples, logits, classes=DIGITS):
    """Draws the first five examples like `draw_mistakes`, with a right prediction in blue."""
    count = min(5, len(examples.labels))
    return _draw_answers(examples, logits, classes, np.arange(count), f"first {count} of {len(logits):,} images")


def _draw_answers(examples, logits, classes, chosen, title):
    """Draws the examples with the indices `chosen`, an array, below their answers."""
    labels, predictions, names = np.asarray(examples.labels), np.argmax(logits, axis=1), drawable(classes)
    side = WIDTH // 5 - 4
    beside = 2 * max(map(FONT.getlength, names)) + _ARROW + FONT.getlength(" 100%") <= side
    images = [Image.fromarray(examples.images[i, :, :, 0]).resize((side, side)) for i in chosen]
    canvas, corners = grid(images, title, 5, text=LINE if beside else 3 * LINE)
    draw = ImageDraw.Draw(canvas)
    _write_answer(draw, WIDTH - 97, 2, "label", "prediction", True)
    for (x, y), i, share in zip(corners, chosen, softmax(logits[chosen]).max(axis=1), strict=True):
        label, prediction = cut(names[labels[i]], side), cut(names[predictions[i]], side)
        colour = RED if labels[i] != predictions[i] else BLUE
        end = _write_answer(draw, x, y, label, prediction, beside, colour)
        draw.text((end + 3, y) if beside else (x, y + 2 * LINE), f"{share:.0%}", GREY, FONT)
    return canvas


def _write_answer(draw, x, y, label, prediction, beside, colour=RED):
    """Writes a label and the prediction, below it, or beside it behind an arrow. Returns: the right end in pixels."""
    draw.text((x, y), label, "black", FONT)
    if beside:
        x += FONT.getlength(label)
        middle, tip = y + 7, x + _ARROW - 4
        draw.line((x + 3, middle, tip, middle), GREY)
        draw.line((tip - 3, middle - 3, tip, middle, tip - 3, middle + 3), GREY)
        x += _ARROW
    draw.text((x, y if beside else y + LINE), prediction, colour, FONT)
    return x + FONT.getlength(prediction)


def draw_accuracies(labels, predictions, classes=DIGITS):
    """Draws the accuracy of each class as a bar, the worst in red, and the number of its images.

    Takes integer labels and predictions `[N]`. Leaves out classes without images. Of more than 25 classes it draws the
    worst, worst first.
    """
    counts = np.bincount(labels, minlength=len(classes))
    hits = np.bincount(np.asarray(labels)[np.equal(labels, predictions)], minlength=len(classes))
    shares = hits / np.maximum(counts, 1)
    there = np.flatnonzero(counts)
    shown = there if len(there) <= _MAX_SHOWN else there[np.argsort(shares[there], kind="stable")[:_MAX_SHOWN]]
    names, numbers = [cut(drawable(classes)[i], 2 * _MAX_NAME) for i in shown], [f"{counts[i]:,}" for i in shown]
    left = 7 + round(max(map(FONT.getlength, names)))
    right = WIDTH - 12 - round(max(map(FONT.getlength, ["images", *numbers])))
    worst = min(shares[shown])
    # The axis starts so that the worst bar has at least a fifth of its length.
    start = max(low for low in (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99) if not low or worst >= low + (1 - low) / 5)
    canvas = Image.new("RGB", (WIDTH, (len(shown) + 2) * (LINE + 2) + 2), "white")
    draw = ImageDraw.Draw(canvas)
    title = f"accuracy {hits.sum() / counts.sum():.2%}, {_some(len(shown), len(there), 'classes')}"
    draw.text((3, 2), title, "black", FONT)
    y = LINE + 4
    for x, text, anchor in ((left, f"{start:.0%}", "la"), (right, "100%", "ra"), (WIDTH - 3, "images", "ra")):
        draw.text((x, y), text, GREY, FONT, anchor=anchor)
    for share, name, number in zip(shares[shown], names, numbers, strict=True):
        y += LINE + 2
        draw.text((left - 4, y + 7), name, "black", FONT, anchor="rm")
        draw.text((WIDTH - 3, y + 7), number, GREY, FONT, anchor="rm")
        draw.rectangle((left, y, right, y + LINE - 1), (235, 235, 235))
        end = left + (right - left) * (share - start) / (1 - start)
        draw.rectangle((left, y, end, y + LINE - 1), RED if share == worst < 1 else BLUE)
        fits = end - left > FONT.getlength("100.00%") + 6
        x, colour = (left + 4, "white") if fits else (end + 4, "black")
        draw.text((x, y + 7), f"{share:.2%}", colour, FONT, anchor="lm")
    return canvas


def draw_filters(model):
    """Draws the first 256 kernels of a model's first `Conv2D` of grey images, blue below 0 and red above.

    The strongest colour is the largest weight of all kernels. Returns: a picture, or None without such a layer.
    """
    layers = (layer for layer in _layers_of(model) if isinstance(layer, keras.layers.Conv2D) and layer.built)
    layer = next((layer for layer in layers if layer.kernel.shape[2] == 1), None)
    if layer is None:
        return None
    kernels = np.array(keras.ops.convert_to_numpy(layer.kernel), np.float64)[:, :, 0].transpose(2, 0, 1)
    largest = np.abs(kernels).max()
    shades = kernels[:_MAX_FILTERS] / (largest or 1)
    columns = max(8, math.ceil(len(shades) ** 0.5))
    scale = (WIDTH // columns - 4) / max(shades.shape[1:])
    size = [max(1, int(length * (int(scale) or scale))) for length in shades.shape[:0:-1]]
    colours = mix(np.maximum(-shades, 0), np.maximum(shades, 0))
    images = [Image.fromarray(image).resize(size, Image.Resampling.NEAREST) for image in colours]
    name = layer.name.encode("ascii", "replace").decode()
    shown = f"first {_MAX_FILTERS} of " if len(kernels) > _MAX_FILTERS else ""
    title = f"{shown}{len(kernels):,} kernels of {cut(name, 120)}, from {-largest:.2g} to {largest:.2g}"
    canvas, corners = grid(images, title, columns)
    for x, y in corners:  # a frame, because a weight of 0 is as white as the canvas
        ImageDraw.Draw(canvas).rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline="grey")
    return canvas


def _layers_of(model):
    """Yields all layers in order, with the layers of nested models, which Keras' own list has in another order."""
    for layer in model._flatten_layers(include_self=False, recursive=False):
        yield layer
        yield from _layers_of(layer)


def _some(shown, count, what):
    """Returns a title such as "worst 25 of 60 mistakes"."""
    if shown < count:
        return f"worst {shown} of {count:,} {what}"
    return f"{count:,} {what}" if count else f"no {what}"
