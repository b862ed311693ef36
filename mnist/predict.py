"""Reads the digits in image files: python -m mnist.predict --workdir=runs/NAME image.png ...

A picture is cropped to the ink, scaled to 20x20 and centred, light on dark, as MNIST's images are. A picture of 28x28
stays as it is if it is framed as in MNIST, or if the run's training images are not.
"""

import json
import os
import tempfile

from mnist import Error, files, finished
from mnist.cli import run
from mnist.data import DIGITS, read_digit, read_image
from mnist.metrics import softmax
from mnist.model import make_predict_logits
from mnist.settings import Setting, local_path

import numpy as np
from PIL import Image

__all__ = ["Predict", "main", "read_image"]

# On MNIST's test set, 57 % of the wrong answers are less probable than this, and 0.9 % of the right ones.
_SURE = 0.7


class Predict:
    """The settings of a prediction."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    checkpoint = finished.which_checkpoint()
    json = Setting(False, "Print a JSON list instead of lines.")
    save_input = Setting(None, "Folder for the image that the network saw of each file, as a PNG.", kind=local_path)


def main(options, paths):
    """Prints the classes of image files. Returns 1 if a file could not be read, else 0."""
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
            image, doubt = read_digit(path, trained.framed)
        except Error as error:
            rows.append({"file": path, "error": str(error).removeprefix(f"{path}: ")})
            continue
        probabilities = softmax(predict_logits(image[np.newaxis]).numpy())[0]
        row = _row(path, probabilities, trained.classes, doubt)
        if options.save_input:
            # A file's name may have 255 bytes.
            name = f"{number:04d}_{os.path.splitext(os.path.basename(path))[0][:50]}.png"
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
    """Returns the prediction for one file as a dict for JSON, from probabilities `[classes]`."""
    best = [int(i) for i in np.argsort(-probabilities, kind="stable")[:3]]
    top = [{"class": classes[i], "probability": float(probabilities[i])} for i in best]
    if classes != DIGITS:
        doubt = None  # the bounds were measured on digits alone
    if probabilities[best[0]] < _SURE:
        doubt = doubt or "low probability"
    return {"file": path, "digit": best[0], **top[0], "top": top, "unsure": doubt or False}


def _line(row):
    if "error" in row:
        return f"{row['file']}: error: {row['error']}"
    first, *others = [(best["class"], f"{best['probability']:.1%}") for best in row["top"]]
    line = f"{row['file']}: {first[0]} ({first[1]})" + "".join(f", {name} {share}" for name, share in others)
    return f"{line}  unsure: {row['unsure']}" if row["unsure"] else line


if __name__ == "__main__":
    run(main, Predict, arguments=True)
