"""Exports the model of a run as a SavedModel, a .keras or a .tflite file: python -m mnist.export --workdir=runs/NAME"""

import contextlib
import json
import os
import re
import sys
import tempfile
import zipfile

from mnist import Error, files, finished
from mnist.cli import run
from mnist.model import IMAGE_SHAPE, scale_images
from mnist.settings import Setting, local_path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

_OUTPUTS = {"saved_model": "saved_model", "keras": "model.keras", "tflite": "model.tflite"}  # in the run's folder
# A SavedModel has traces for these too, so that it raises InvalidArgumentError. For other types it raises ValueError.
_OTHER_DTYPES = [tf.bool, tf.int8, tf.uint16, tf.int16, tf.uint32, tf.int32, tf.uint64, tf.int64, tf.string]
_OTHER_DTYPES += [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128]


class Served(tf.Module):
    """The exported function: uint8 images `[N, 28, 28, 1]`, N >= 0, to `logits`, `probabilities` and `digit`.

    A call also takes `[N, 28, 28]`. Other shapes and types raise `tf.errors.InvalidArgumentError`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.weights = [v.value for v in model.variables]  # tf.Module does not track the lists of Keras
        # A table of the scaled grey levels, because TFLite has no float64 to divide in. It keeps every bit.
        self.scaled = scale_images(np.arange(256, dtype=np.uint8)).numpy()

    @tf.function
    def __call__(self, images):
        if images.dtype != tf.uint8:
            tf.debugging.Assert(False, [f"images are {images.dtype.name}, expected uint8"])
            return {}
        if tf.rank(images) == 3:
            images = tf.ensure_shape(images, [None, *IMAGE_SHAPE[:-1]])[..., tf.newaxis]
        return self.serve(images)

    @tf.function(input_signature=[tf.TensorSpec([None, *IMAGE_SHAPE], tf.uint8, "images")])
    def serve(self, images):
        # A loaded signature does not check shapes, and a convolution of another rank ends the process.
        images = tf.ensure_shape(images, [None, *IMAGE_SHAPE])
        count = tf.shape(images)[0]
        # TensorFlow's convolutions fail for no images, so that these need a blank one.
        blank = tf.zeros([tf.cast(count == 0, tf.int32), *IMAGE_SHAPE], tf.uint8)
        return {name: answer[:count] for name, answer in self.answer(tf.concat([images, blank], axis=0)).items()}

    def answer(self, images):
        """Returns a dict: `logits` and `probabilities`, float32 `[N, classes]`, and `digit`, int64 `[N]`, unchecked."""
        scaled = tf.gather(self.scaled, tf.cast(images, tf.int32))
        logits = tf.cast(self.model(scaled, training=False), tf.float32)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits), "digit": tf.argmax(logits, axis=1)}


def export(model, output, format="saved_model"):
    """Writes a model with the inputs and outputs of `Served`. The output is complete or absent.

    Args:
      model: a `keras.Model` from images in [0, 1] to logits.
      output: a str. The path of the folder or file.
      format: `saved_model`, `keras` or `tflite`. The first is a folder, the others are files. The signature of a
        SavedModel and of a TFLite file is `serving_default`.

    Returns: a dict, the argument `custom_objects` that `keras.models.load_model` needs. It is empty for other formats.
    Raises: `mnist.Error` if the output exists, cannot be written, or cannot hold the model.
    """
    if os.path.lexists(output):
        raise Error(f"--output={output} exists already: remove it, or name another.")
    if format == "keras" and not output.endswith(".keras"):
        raise Error(f"--output={output} does not end in .keras: Keras loads no other file.")
    parent = os.path.dirname(os.path.abspath(output))  # abspath drops a slash at the end
    write = {"saved_model": _write_saved_model, "keras": _write_keras, "tflite": _write_tflite}[format]
    with files.write_errors(f"write {output}"):
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export", dir=parent) as temporary:
            complete = os.path.join(temporary, _OUTPUTS[format])
            classes = write(model, complete)
            os.rename(complete, os.path.abspath(output))
    return classes or {}


def _write_saved_model(model, path):
    served = Served(model)
    for dtype in [tf.uint8, *_OTHER_DTYPES]:  # a loaded function has only these traces
        served.__call__.get_concrete_function(tf.TensorSpec(None, dtype, "images"))
    tf.saved_model.save(served, path, signatures={"serving_default": served.serve})


def _write_keras(model, path):
    """Writes a functional model of Keras' own layers if Keras can trace the model, and else a layer around it."""
    served = Served(model)
    try:
        return _write_keras_around(model.call, served, path)
    except OSError:
        raise
    except Exception:  # a call raises any exception if it uses operations of other packages
        return _write_keras_around(model, served, path)


def _write_keras_around(call, served, path):
    """Writes a model that calls `call` on scaled images, and checks that it can be loaded. Returns: its own classes."""
    probe = np.random.default_rng(0).integers(0, 256, [8, *IMAGE_SHAPE], np.uint8)
    try:
        _functional(call, served.scaled).save(path)
        classes = _own_classes(path)
        logits = keras.models.load_model(path, custom_objects=classes)(probe)["logits"]
    except OSError:
        raise
    except Exception as error:  # Keras raises many, for a lambda or a class without get_config()
        reason = " ".join(str(error).split())[:200]
        raise Error(f"--format=keras cannot hold this model: {reason}. Take --format=saved_model.") from None
    if not np.allclose(logits, served.answer(probe)["logits"], atol=1e-4):
        raise Error("--format=keras cannot hold this model: loaded again, it differs. Take --format=saved_model.")
    return classes


def _functional(call, scaled_levels):
    images = keras.Input(IMAGE_SHAPE, dtype="uint8", name="images")
    # The table is a layer of Keras, because the file must load without this package.
    table = layers.Embedding(256, 1, trainable=False, dtype="float32", name="export_table")
    scaled = layers.Reshape(IMAGE_SHAPE, dtype="float32", name="export_scaled")(table(images))
    table.set_weights([scaled_levels[:, np.newaxis]])
    logits = layers.Activation("linear", dtype="float32", name="export_logits")(call(scaled, training=False))
    answers = {"logits": logits, "probabilities": ops.softmax(logits), "digit": ops.argmax(logits, axis=1)}
    return keras.Model(images, answers, name="export")


def _own_classes(path):
    """Returns the classes and functions of a .keras file that Keras does not define, as a dict from names."""
    parts = []
    with zipfile.ZipFile(path) as file:
        json.loads(file.read("config.json"), object_hook=parts.append)
    classes = {}
    for part in parts:
        module, name = part.get("module"), part.get("class_name")
        if module and name and module.partition(".")[0] not in ("keras", "builtins"):
            name = part["config"] if name == "function" else name
            classes[name] = getattr(sys.modules[module], name)
    return classes


def _write_tflite(model, path):
    if any(layer.compute_dtype == "bfloat16" for layer in model._flatten_layers()):
        raise Error("TFLite has no bfloat16: take --format=saved_model or keras, or train with --precision=float32.")
    served = Served(model)

    @tf.function(input_signature=served.serve.input_signature)
    def serve(images):  # the reshape refuses other shapes, for which the kernels of TFLite would end the process
        return served.answer(tf.reshape(images, [-1, *IMAGE_SHAPE]))

    try:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], served)
    except (ImportError, AttributeError):
        raise Error("this TensorFlow has no TFLite converter: take --format=saved_model or keras.") from None
    try:
        with _without_stderr():
            content = converter.convert()
    except Exception as error:
        missing = re.search(r"(?:Select|Custom) ops: (.*)", str(error))
        reason = f"it lacks {missing[1]}" if missing else " ".join(str(error).split())[:200]
        raise Error(f"TFLite cannot hold this model: {reason}. Take --format=saved_model or keras.") from None
    with open(path, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def _without_stderr():
    """Discards stderr, where the converter logs pages about its work."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)


class Export:
    """The settings of an export."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    checkpoint = finished.which_checkpoint()
    format = Setting(
        "saved_model",
        "A SavedModel is for TensorFlow and its servers, a .keras file for Keras, a .tflite file for phones. All three "
        "take uint8 images, and give logits, probabilities and digit.",
        kind=tuple(_OUTPUTS),
    )
    output = Setting(
        None, "Folder or file to write. Default: saved_model, model.keras or model.tflite in the run.", kind=local_path
    )


def main(options):
    """Exports the model of a run, and prints how to use the output."""
    trained = finished.load(options.workdir, options.checkpoint)
    output = options.output or os.path.join(options.workdir, _OUTPUTS[options.format])
    classes = export(trained.model, output, options.format)
    print(f"wrote {output} (step {trained.step})")
    if options.format == "keras":
        print("Give it grey levels from 0 to 255, not scaled, because Keras casts all inputs to uint8.")
    if options.format == "tflite":
        print("Give it uint8 images [N, 28, 28, 1], N >= 1. It checks only the number of pixels.")
    if options.format == "saved_model" and files.is_pattern(output):
        print("TensorFlow's loader takes []*?\\ in a path for a pattern. To load it, move it or link to it elsewhere.")
    if classes:
        names = [f"{value.__module__}.{name}" for name, value in classes.items()]
        print(f"keras.models.load_model needs custom_objects for {', '.join(names)}.")


if __name__ == "__main__":
    run(main, Export)
