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
# A call with one of these is refused in the graph. A dtype of which the graph knows nothing is a ValueError.
_OTHER_DTYPES = [tf.bool, tf.int8, tf.uint16, tf.int16, tf.uint32, tf.int32, tf.uint64, tf.int64, tf.string]
_OTHER_DTYPES += [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128]


class Served(tf.Module):
    """What is exported: uint8 images -> logits, probabilities `[N, classes]`, digit `[N]`, any N, also 0.

    Called, it takes images `[N, 28, 28, 1]` or `[N, 28, 28]`; as a signature the first. Anything else raises
    `tf.errors.InvalidArgumentError`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.weights = [v.value for v in model.variables]  # tracked by name; Keras lists are not
        # TFLite has no float64 to divide in, and a table gives what the model was trained on to the bit.
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
        # The signature's shape binds nobody who calls a loaded one; a convolution of another rank ends the process.
        images = tf.ensure_shape(images, [None, *IMAGE_SHAPE])
        count = tf.shape(images)[0]
        # Convolutions of no images fail in TensorFlow: a blank one goes along.
        blank = tf.zeros([tf.cast(count == 0, tf.int32), *IMAGE_SHAPE], tf.uint8)
        return {name: answer[:count] for name, answer in self.answer(tf.concat([images, blank], axis=0)).items()}

    def answer(self, images):
        """The answers to uint8 images `[N, 28, 28, 1]`, N >= 1, without checks."""
        scaled = tf.gather(self.scaled, tf.cast(images, tf.int32))
        logits = tf.cast(self.model(scaled, training=False), tf.float32)
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "digit": tf.argmax(logits, axis=1),
        }


def export(model, output, format="saved_model"):
    """Writes a model that takes uint8 images and gives what `Served` does; the output is whole or not there.

    Args:
      model: a `keras.Model` from images in [0, 1] to logits.
      output: the path of the folder or file.
      format: `saved_model`, a folder with the signature `serving_default`; `keras`, a file for
        `keras.models.load_model`; `tflite`, a file with the signature `serving_default`.

    Returns: the classes that are not Keras' own, by name, which `keras.models.load_model` needs as `custom_objects`;
      none but for `keras`. Raises: `mnist.Error` if the output exists, cannot be written, or cannot hold the model.
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
            whole = os.path.join(temporary, _OUTPUTS[format])
            classes = write(model, whole)
            os.rename(whole, os.path.abspath(output))
    return classes or {}


def _write_saved_model(model, path):
    served = Served(model)
    for dtype in [tf.uint8, *_OTHER_DTYPES]:  # a loaded object is called with what it was traced with
        served.__call__.get_concrete_function(tf.TensorSpec(None, dtype, "images"))
    tf.saved_model.save(served, path, signatures={"serving_default": served.serve})


def _write_keras(model, path):
    """Writes a functional model of Keras' own layers where the model can be taken apart, else one around it."""
    served = Served(model)
    try:
        return _write_keras_around(model.call, served, path)
    except OSError:
        raise
    except Exception:  # whatever a call raises that is not of Keras' operations alone
        return _write_keras_around(model, served, path)


def _write_keras_around(call, served, path):
    """Writes a model that calls `call` on scaled images, and loads it again. Returns: what loading it needs."""
    probe = np.random.default_rng(0).integers(0, 256, [8, *IMAGE_SHAPE], np.uint8)
    try:
        _functional(call, served.scaled).save(path)
        classes = _own_classes(path)
        logits = keras.models.load_model(path, custom_objects=classes)(probe)["logits"]
    except OSError:
        raise
    except Exception as error:  # Keras': of a lambda, of a class without get_config()
        reason = " ".join(str(error).split())[:200]
        raise Error(f"--format=keras cannot hold this model: {reason}. Take --format=saved_model.") from None
    if not np.allclose(logits, served.answer(probe)["logits"], atol=1e-4):
        raise Error("--format=keras cannot hold this model: loaded again, it differs. Take --format=saved_model.")
    return classes


def _functional(call, scaled_levels):
    images = keras.Input(IMAGE_SHAPE, dtype="uint8", name="images")
    # The table as Keras has it: the file is loaded where this package is not.
    table = layers.Embedding(256, 1, trainable=False, dtype="float32", name="export_table")
    scaled = layers.Reshape(IMAGE_SHAPE, dtype="float32", name="export_scaled")(table(images))
    table.set_weights([scaled_levels[:, np.newaxis]])
    logits = layers.Activation("linear", dtype="float32", name="export_logits")(call(scaled, training=False))
    answers = {"logits": logits, "probabilities": ops.softmax(logits), "digit": ops.argmax(logits, axis=1)}
    return keras.Model(images, answers, name="export")


def _own_classes(path):
    """Classes and functions that a .keras file names but for Keras' own, by name, as `custom_objects` takes them."""
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
    def serve(images):  # its kernels check no shapes, and end the process over some: this refuses what is no image
        return served.answer(tf.reshape(images, [-1, *IMAGE_SHAPE]))

    try:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], served)
    except (ImportError, AttributeError):
        raise Error("this TensorFlow has no TFLite converter: take --format=saved_model or keras.") from None
    try:
        with _quiet():
            content = converter.convert()
    except Exception as error:
        missing = re.search(r"(?:Select|Custom) ops: (.*)", str(error))
        reason = f"it lacks {missing[1]}" if missing else " ".join(str(error).split())[:200]
        raise Error(f"TFLite cannot hold this model: {reason}. Take --format=saved_model or keras.") from None
    with open(path, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def _quiet():
    """While entered, stderr is passed over: of the converter, screens of what it does and where it failed."""
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
    """What is exported, and where to."""

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
    trained = finished.load(options.workdir, options.checkpoint)
    output = options.output or os.path.join(options.workdir, _OUTPUTS[options.format])
    classes = export(trained.model, output, options.format)
    print(f"wrote {output} (step {trained.step})")
    if options.format == "keras":
        print("Give it grey levels from 0 to 255, not scaled: Keras casts whatever it is given to uint8.")
    if options.format == "tflite":
        print("Give it uint8 images [N, 28, 28, 1], N >= 1: it checks no more than the number of pixels.")
    if options.format == "saved_model" and files.is_pattern(output):
        print("TensorFlow's loader takes []*?\\ in a path for a pattern: to load it, move it or link to it elsewhere.")
    if classes:
        names = [f"{value.__module__}.{name}" for name, value in classes.items()]
        print(f"keras.models.load_model needs custom_objects for {', '.join(names)}.")


if __name__ == "__main__":
    run(main, Export)
