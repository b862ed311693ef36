"""Every picture of a run, drawn once: for TensorBoard, as PNG files, and in a notebook, where a cell shows it.

A picture is a `PIL.Image.Image`. All but the curves are drawn with Pillow: matplotlib takes half a second for
one, a tenth of an epoch.
"""

import io
import os

from mnist.files import write_errors
from mnist.metrics import count_confusions
from mnist.readers import NUM_CLASSES

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def save_pictures(history, examples, predictions, directory):
    """Draws `curves.png`, `predictions.png` and `confusion_matrix.png`.

    Args:
      history: a list of dicts with `step` and train and validation `loss` and `accuracy`.
      examples: test images and labels.
      predictions: integers `[N]`, one for each of the examples.
      directory: where the files go, made if need be.

    Returns: the three paths.
    """
    pictures = {
        "curves": draw_curves(history),
        "predictions": draw_predictions(examples, predictions),
        "confusion_matrix": draw_confusions(count_confusions(examples.labels, predictions, NUM_CLASSES)),
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


def draw_predictions(examples, predictions, columns=5):
    """Draws the first images, each with its own label and prediction; wrong ones in red."""
    cell, text = 84, 20
    count = min(columns * columns, len(examples.labels))
    canvas = Image.new("RGB", (columns * cell, -(-count // columns) * (cell + text)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for i in range(count):
        x, y = i % columns * cell, i // columns * (cell + text)
        label, prediction = int(examples.labels[i]), int(predictions[i])
        canvas.paste(Image.fromarray(examples.images[i, :, :, 0]).resize((cell - 4, cell - 4)), (x + 2, y + text))
        colour = "black" if label == prediction else "red"
        draw.text((x + 4, y + 4), f"true {label} pred. {prediction}", colour, font)
    return canvas


def draw_confusions(matrix):
    """Draws a confusion matrix `[classes, classes]` (row: label, column: prediction)."""
    cell, classes = 40, len(matrix)
    side = (classes + 1) * cell + 1
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    draw.text((3, 3), "label\\pred.", "black", ImageFont.load_default(7))
    for i in range(classes):
        middle = (i + 1.5) * cell
        draw.text((middle, cell / 2), str(i), "black", font, anchor="mm")
        draw.text((cell / 2, middle), str(i), "black", font, anchor="mm")
        for j in range(classes):
            # A square root makes single mistakes visible beside thousands of hits.
            shade = int(255 * (1 - shares[i, j] ** 0.5))
            left, top = (j + 1) * cell, (i + 1) * cell
            draw.rectangle((left, top, left + cell, top + cell), (shade, shade, 255), "lightgrey")
            colour = "white" if shade < 128 else "black"
            draw.text((left + cell / 2, top + cell / 2), str(matrix[i, j]), colour, font, anchor="mm")
    return canvas
