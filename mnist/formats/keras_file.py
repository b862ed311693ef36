"""A .keras file, for Keras."""

import json
import sys
import zipfile

from mnist import Error
from mnist.formats.served import BLANK, PROBE, Served, append_names, check_answers, read_appended_names
from mnist.model import IMAGE_SHAPE

import keras
import numpy as np
from keras import layers, ops

OUTPUT = "model.keras"


def write(model, path, names):
    """Writes a functional model of Keras' own layers if Keras can trace the model, and else a layer around it.

    Returns: a dict with the classes of the model itself, which `keras.models.load_model` needs.
    """
    served = Served(model)
    try:
        own_classes = _write_around(model.call, served, path)
    except OSError:
        raise
    except Exception:  # a call raises any exception if it uses operations of other packages
        own_classes = _write_around(model, served, path)
    append_names(path, names)
    return own_classes


def _write_around(call, served, path):
    """Writes a model that calls `call` on scaled images, and checks that it can be loaded. Returns: its own classes."""
    try:
        _functional(call, served.scaled).save(path)
        classes = _own_classes(path)
        logits = keras.models.load_model(path, custom_objects=classes)(PROBE)["logits"]
    except OSError:
        raise
    except Exception as error:  # Keras raises many, for a lambda or a class without get_config()
        reason = " ".join(str(error).split())[:200]
        raise Error(f"--format=keras cannot hold this model: {reason}. Take --format=saved_model.") from None
    check_answers(logits, served, "keras")
    return classes


def _functional(call, scaled_levels):
    images = keras.Input(IMAGE_SHAPE, name="images")
    # TensorFlow's convolutions fail for no images, so that a blank one follows them.
    padded = ops.pad(images, [[0, 1], [0, 0], [0, 0], [0, 0]])
    # The table is a layer of Keras, because the file must load without this package. It has no row 256.
    table = layers.Embedding(256, 1, trainable=False, dtype="float32", name="export_table")
    levels = table(ops.where(padded < 0, 256, ops.floor(padded)))
    levels = layers.Reshape(IMAGE_SHAPE, dtype="float32", name="export_levels")(levels)
    table.set_weights([scaled_levels[:, np.newaxis]])
    scaled = ops.where(ops.max(padded, axis=[1, 2, 3], keepdims=True) <= 1, padded, levels)
    logits = layers.Activation("linear", dtype="float32", name="export_logits")(call(scaled, training=False))[:-1, :]
    digit = ops.top_k(logits, 1)[1][:, 0]  # argmax of Keras has an operation that LiteRT lacks
    return keras.Model(images, {"logits": logits, "probabilities": ops.softmax(logits), "digit": digit}, name="export")


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


def usage(path, own_classes):
    """Returns the input in words, a line of Python that calls the output, and one that prints the names."""
    inputs = "[N, 28, 28, 1], N >= 0, grey levels from 0 to 255 of any type, or floats scaled to [0, 1]"
    modules = "".join(f", {module}" for module in sorted({value.__module__ for value in own_classes.values()}))
    own = ", ".join(f"{name!r}: {value.__module__}.{value.__qualname__}" for name, value in own_classes.items())
    own = f", custom_objects={{{own}}}" if own else ""
    call = f"import keras, numpy{modules}; print(keras.models.load_model({path!r}{own})({BLANK}))"
    return inputs, call, read_appended_names(path)
