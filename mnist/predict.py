"""Reads the digits in image files: python -m mnist.predict --workdir=runs/NAME image.png ...

A picture is prepared as the run's training images look: their paper, ink, frame and strokes. It is read as it is, if
that is like them. Else it is read by its ink, then without printed lines and other parts, then in uneven light.

An answer is `unsure` if its probability is low, or if the image is unlike the training images. It also is if another
reading of the picture has another answer. A file with several digits or pages gets one line that names what was found.
"""

import json
import os
import tempfile

from mnist import Error, files, finished
from mnist.cli import run
from mnist.data import read_image
from mnist.pictures.readings import read_picture
from mnist.settings import Setting, local_path

import numpy as np
from PIL import Image

__all__ = ["Predict", "main", "read_files", "read_image"]

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
    rows = read_files(finished.load(options.workdir, options.checkpoint), paths, options.save_input)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(_line(row))
    return 1 if any("error" in row for row in rows) else 0


def read_files(trained, paths, save_input=None):
    """Reads the digits in image files, as `read_files(finished.load("runs/first"), ["digit.png"])[0]["class"]`.

    Args:
      trained: a `finished.Run`.
      paths: a list of the names of files.
      save_input: a folder for the image that the network saw of each file, as a PNG. Default: none is written.

    Returns: a list of dicts, one for each file, with the keys of `--json`: `file`, and `error` or all others.
    """
    rows = []
    for number, path in enumerate(paths, 1):
        try:
            best, *others = read_picture(path, trained.look, trained.predict)
        except Error as error:
            rows.append({"file": path, "error": str(error).removeprefix(f"{path}: ")})
            continue
        row = _row(path, best, others, trained.classes)
        if save_input:
            # A file's name may have 255 bytes.
            name = f"{number:04d}_{os.path.splitext(os.path.basename(path))[0][:50]}.png"
            row["input"] = os.path.join(save_input, name)
            with files.write_errors(f"write {row['input']}"):
                Image.fromarray(best.image[..., 0]).save(row["input"])
        rows.append(row)
    return rows


def _row(path, best, others, classes):
    """Returns the prediction for one file as a dict for JSON, from its best `Reading` and those about as likely."""
    order = [int(i) for i in np.argsort(-best.probabilities, kind="stable")[:3]]
    top = [{"class": classes[i], "probability": float(best.probabilities[i])} for i in order]
    rival = next((i for i in (int(other.probabilities.argmax()) for other in others) if i != order[0]), None)
    doubt = best.doubt or (f"another reading is {classes[rival]}" if rival is not None else None)
    if top[0]["probability"] < _SURE:
        doubt = doubt or "low probability"
    return {"file": path, "digit": order[0], **top[0], "top": top, "unsure": doubt or False}


def _line(row):
    if "error" in row:
        return f"{row['file']}: error: {row['error']}"
    first, *others = [(best["class"], f"{best['probability']:.1%}") for best in row["top"]]
    line = f"{row['file']}: {first[0]} ({first[1]})" + "".join(f", {name} {share}" for name, share in others)
    return f"{line}  unsure: {row['unsure']}" if row["unsure"] else line


if __name__ == "__main__":
    run(main, Predict, arguments=True)
