"""Exports the model of a run for TensorFlow, Keras, LiteRT or ONNX Runtime: python -m mnist.export --workdir=runs/NAME

Each --format has the inputs and outputs of `Served`, holds the names of the classes, and needs no code of this package.
The command prints a line of Python that calls the output, and one that reads the list of names. The name of class 3 is
item 3 of this list.

| format | runs in | names of the classes, one a line | floats instead of uint8 images |
|---|---|---|---|
| saved_model | TensorFlow | the file assets/classes.txt in its folder | raise InvalidArgumentError |
| keras | Keras | classes.txt in the file, which is a zip archive | are scaled or refused |
| tflite | LiteRT | classes.txt in a zip archive that the file ends with | raise ValueError |
| onnx | ONNX Runtime | `classes` in the metadata of the model | raise InvalidArgument |

Keras casts all inputs to one type, here float32. The .keras file takes an image without a pixel above 1 as scaled to
[0, 1], and any other as grey levels. On a CPU it raises InvalidArgumentError for a pixel below 0 or above 255. Keras
drops the names if it saves the loaded model again. LiteRT and ONNX get float32 arithmetic, also after
--precision=bfloat16. --format=onnx needs tf2onnx and onnxruntime (pip install -e '.[onnx]').
"""

import os
import tempfile

from mnist import Error, files, finished
from mnist.cli import run
from mnist.formats import FORMATS, Served
from mnist.model import count_outputs
from mnist.settings import Setting, local_path

__all__ = ["Export", "Served", "export", "main"]


def export(model, output, format="saved_model", names=None):
    """Writes a model with the inputs and outputs of `Served`. The output is complete or absent.

    Args:
      model: a `keras.Model` from images in [0, 1] to logits.
      output: a str. The path of the folder or file.
      format: `saved_model`, `keras`, `tflite` or `onnx`. The first is a folder, the others are files. The signature of
        a SavedModel and of a LiteRT file is `serving_default`.
      names: a sequence of str. The name of each class. Default: the numbers from 0.

    Returns: a dict, the argument `custom_objects` that `keras.models.load_model` needs. It is empty for other formats.
    Raises: `mnist.Error` if the output exists, cannot be written, or cannot hold the model.
    """
    if os.path.lexists(output):
        raise Error(f"--output={output} exists already: remove it, or name another.")
    if format == "keras" and not output.endswith(".keras"):
        raise Error(f"--output={output} does not end in .keras: Keras loads no other file.")
    parent = os.path.dirname(os.path.abspath(output))  # abspath drops a slash at the end
    names = "\n".join(map(str, range(count_outputs(model))) if names is None else names)
    with files.write_errors(f"write {output}"):
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export", dir=parent) as temporary:
            complete = os.path.join(temporary, FORMATS[format].OUTPUT)
            own_classes = FORMATS[format].write(model, complete, names)
            os.rename(complete, os.path.abspath(output))
    return own_classes or {}


class Export:
    """The settings of an export."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    checkpoint = finished.which_checkpoint()
    format = Setting(
        "saved_model",
        "A SavedModel is for TensorFlow and its servers, a .keras file for Keras, a .tflite file for LiteRT on phones. "
        "An .onnx file is for ONNX Runtime. All take uint8 images, give logits, probabilities and digit, and hold the "
        "names of the classes.",
        kind=tuple(FORMATS),
    )
    output = Setting(
        None,
        f"Folder or file to write. Default: {', '.join(each.OUTPUT for each in FORMATS.values())} in the run.",
        kind=local_path,
    )


def main(options):
    """Exports the model of a run, and prints how to use the output."""
    trained = finished.load(options.workdir, options.checkpoint)
    output = options.output or os.path.join(options.workdir, FORMATS[options.format].OUTPUT)
    own_classes = export(trained.model, output, options.format, trained.classes)
    print(f"wrote {output} (step {trained.step})")
    if options.format == "saved_model" and files.is_pattern(output):
        print("TensorFlow's loader takes []*?\\ in a path for a pattern. To load it, move it or link to it elsewhere.")
    if own_classes:
        names = [f"{value.__module__}.{name}" for name, value in own_classes.items()]
        print(f"keras.models.load_model needs custom_objects for {', '.join(names)}.")
    inputs, call, names = FORMATS[options.format].usage(output, own_classes)
    count, digit = len(trained.classes), "int32" if options.format == "keras" else "int64"
    print(f"input: images {inputs}")
    print(f"outputs: logits float32 [N, {count}], probabilities float32 [N, {count}], digit {digit} [N]")
    print(f"Two lines of Python, which call it and read the names of the classes:\n{call}\n{names}")


if __name__ == "__main__":
    run(main, Export)
