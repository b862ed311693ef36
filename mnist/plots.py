"""Figures of a finished run, for a report: curves, predictions, confusion matrix."""

import os

from mnist.files import write_errors

import matplotlib.figure
from sklearn.metrics import ConfusionMatrixDisplay


def plot_run(history, examples, predictions, directory):
    """Draws `curves.png`, `predictions.png` and `confusion_matrix.png`.

    Args:
      history: a list of dicts with `step` and train and validation `loss` and `accuracy`.
      examples: test images and labels.
      predictions: integers `[N]`, one for each of the examples.
      directory: where the files go, made if need be.

    Returns: the three paths.
    """
    figures = {
        "curves": plot_curves(history),
        "predictions": plot_predictions(examples, predictions),
        "confusion_matrix": plot_confusions(examples.labels, predictions),
    }
    with write_errors(f"write to {directory}"):
        os.makedirs(directory, exist_ok=True)
        paths = [os.path.join(directory, f"{name}.png") for name in figures]
        for path, figure in zip(paths, figures.values(), strict=True):
            figure.savefig(path, dpi=120)
    return paths


def plot_curves(history):
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    steps = [entry["step"] for entry in history]
    for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "validation"):
            axes.plot(steps, [entry[f"{part}_{metric}"] for entry in history], "o-", ms=3, label=part)
        axes.set(xlabel="step", ylabel=metric)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def plot_predictions(examples, predictions, columns=5):
    figure = matplotlib.figure.Figure(figsize=(7, 7.6), layout="constrained")
    for i, axes in enumerate(figure.subplots(columns, columns).flat):
        axes.axis("off")
        if i < len(examples.labels):
            label, prediction = examples.labels[i], predictions[i]
            axes.imshow(examples.images[i, :, :, 0], cmap="gray_r", vmin=0, vmax=255)
            colour = "black" if label == prediction else "red"
            axes.set_title(f"true {label}, predicted {prediction}", fontsize=8, color=colour)
    return figure


def plot_confusions(labels, predictions):
    figure = matplotlib.figure.Figure(figsize=(6, 6), layout="constrained")
    ConfusionMatrixDisplay.from_predictions(
        labels, predictions, labels=range(10), cmap="Blues", colorbar=False, ax=figure.subplots()
    )
    return figure
