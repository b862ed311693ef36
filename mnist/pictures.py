"""Every picture of a run, drawn once: for TensorBoard, as PNG files, and in a notebook, where a cell shows it.

A picture is a `PIL.Image.Image`. All but the curves are drawn with Pillow: matplotlib takes half a second for
one, a tenth of an epoch.
"""

import io
import os

from mnist.files import write_errors
from mnist.metrics import count_confusions
from mnist.readers import DIGITS

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MAX_COUNTED = 20  # classes of a confusion matrix whose counts are to be read
_MAX_NAME = 110  # pixels that the name of a class may take beside it


def save_pictures(history, examples, predictions, directory, classes=DIGITS):
    """Draws `curves.png`, `predictions.png` and `confusion_matrix.png`.

    Args:
      history: a list of dicts with `step` and train and validation `loss` and `accuracy`.
      examples: test images and labels.
      predictions: integers `[N]`, one for each of the examples.
      directory: where the files go, made if need be.
      classes: the names of the classes, a tuple.

    Returns: the three paths.
    """
    matrix = count_confusions(examples.labels, predictions, len(classes))
    pictures = {
        "curves": draw_curves(history),
        "predictions": draw_predictions(examples, predictions, classes=classes),
        "confusion_matrix": draw_confusions(matrix, classes),
    }
    with write_errors(f"write to {directory}"):
        os.makedirs(directory, exist_ok=True)
        paths = [os.path.join(directory, f"{name}.png") for name in pictures]
        for path, picture in zip(paths, pictures.values(), strict=True):
            picture.save(path)
    return paths


def draw_curves(history):
    """Draws loss and accuracy of training and validation over the steps; `history` as of `save_pictures`."""
    import matplotlib.figure  # takes a second to import, and most runs draw no curve

    figure = matplotlib.figure.Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    steps = [entry["step"] for entry in history]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "validation"):
            axes.plot(steps, [entry[f"{part}_{metric}"] for entry in history], "o-", ms=3, label=part)
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)


def draw_predictions(examples, predictions, columns=5, classes=DIGITS):
    """Draws the first images, each with its own label and prediction by the names of `classes`; wrong ones in red.

    Names that are too long to stand side by side are one above the other, t. for the true one and p. for the predicted.
    """
    cell, font, names = 84, ImageFont.load_default(12), _drawable(classes)
    longest = max(map(font.getlength, names))
    short = font.getlength("true  pred. ") + 2 * longest <= cell
    text = 20 if short else 34
    count = min(columns * columns, len(examples.labels))
    canvas = Image.new("RGB", (columns * cell, -(-count // columns) * (cell + text)), "white")
    draw = ImageDraw.Draw(canvas)
    for i in range(count):
        x, y = i % columns * cell, i // columns * (cell + text)
        label, prediction = names[int(examples.labels[i])], names[int(predictions[i])]
        canvas.paste(Image.fromarray(examples.images[i, :, :, 0]).resize((cell - 4, cell - 4)), (x + 2, y + text))
        colour = "black" if examples.labels[i] == predictions[i] else "red"
        if short:
            draw.text((x + 4, y + 4), f"true {label} pred. {prediction}", colour, font)
        else:  # one above the other
            draw.text((x + 4, y + 3), _cut(f"t. {label}", font, cell - 6), colour, font)
            draw.text((x + 4, y + 17), _cut(f"p. {prediction}", font, cell - 6), colour, font)
    return canvas


def draw_confusions(matrix, classes=DIGITS):
    """Draws a confusion matrix `[classes, classes]` (row: label, column: prediction).

    Up to 20 classes with the counts and the names; up to 66 without counts; beyond, numbers of some classes stand for
    the names of all.
    """
    num_classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # A square root makes single mistakes visible beside thousands of hits.
    shades = (255 * (1 - shares**0.5)).astype(np.uint8)  # [classes, classes]
    if num_classes <= _MAX_COUNTED:
        cell, font, every = 40, ImageFont.load_default(12), 1
    else:
        cell, font = max(1, min(24, 800 // num_classes)), ImageFont.load_default(9)
        every = next(n for n in (1, 5, 10, 20, 50) if n * cell >= 12)
    names = _drawable(classes) if every == 1 else list(map(str, range(num_classes)))
    names = [_cut(name, font, _MAX_NAME) for name in names]
    margin = max(40, int(max(map(font.getlength, names))) + 8)
    side = margin + num_classes * cell + 1
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((3, 3), "label\\pred.", "black", ImageFont.load_default(7))
    upright = all(font.getlength(name) <= cell - 4 for name in names)
    for i in range(0, num_classes, every):
        middle = margin + (i + 0.5) * cell
        _draw_name(canvas, names[i], font, middle, margin, upright)
        if upright:
            draw.text((margin / 2, middle), names[i], "black", font, anchor="mm")
        else:
            draw.text((margin - 4, middle), names[i], "black", font, anchor="rm")
    if num_classes > _MAX_COUNTED:
        colours = np.stack([shades, shades, np.full_like(shades, 255)], axis=-1)
        area = num_classes * cell
        canvas.paste(Image.fromarray(colours).resize((area, area), Image.Resampling.NEAREST), (margin, margin))
        draw.rectangle((margin - 1, margin - 1, margin + area, margin + area), outline="lightgrey")
        return canvas
    for i, j in np.ndindex(matrix.shape):
        shade, left, top = int(shades[i, j]), margin + j * cell, margin + i * cell
        draw.rectangle((left, top, left + cell, top + cell), (shade, shade, 255), "lightgrey")
        colour = "white" if shade < 128 else "black"
        draw.text((left + cell / 2, top + cell / 2), str(matrix[i, j]), colour, font, anchor="mm")
    return canvas


def _draw_name(canvas, name, font, middle, margin, upright):
    """Draws the name of a column above it, from bottom to top if it is wider than a cell."""
    if upright:
        ImageDraw.Draw(canvas).text((middle, margin / 2), name, "black", font, anchor="mm")
        return
    strip = Image.new("RGB", (margin - 4, round(1.4 * font.size)), "white")
    ImageDraw.Draw(strip).text((0, strip.height / 2), name, "black", font, anchor="lm")
    canvas.paste(strip.rotate(90, expand=True), (round(middle - strip.height / 2), 0))


def _drawable(classes):
    """Names of classes as Pillow's own font can draw them: for a name with other than ASCII the number of the class."""
    return [name if name.isascii() else str(number) for number, name in enumerate(classes)]


def _cut(text, font, width):
    """A text that is no wider than `width`, in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
