"""A SavedModel, for TensorFlow and its servers."""

import os

from mnist.formats.served import BLANK, NAMES, Served

import tensorflow as tf

OUTPUT = "saved_model"
# A SavedModel has traces for these too, so that it raises InvalidArgumentError. For other types it raises ValueError.
_OTHER_DTYPES = [tf.bool, tf.int8, tf.uint16, tf.int16, tf.uint32, tf.int32, tf.uint64, tf.int64, tf.string]
_OTHER_DTYPES += [tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.complex64, tf.complex128]


def write(model, path, names):
    """Writes a model to a folder."""
    served = Served(model)
    names_path = os.path.join(os.path.dirname(path), NAMES)
    with open(names_path, "w", encoding="utf-8") as file:
        file.write(names)
    served.classes = tf.saved_model.Asset(names_path)
    for dtype in [tf.uint8, *_OTHER_DTYPES]:  # a loaded function has only these traces
        served.__call__.get_concrete_function(tf.TensorSpec(None, dtype, "images"))
    tf.saved_model.save(served, path, signatures={"serving_default": served.serve})


def usage(path, own_classes):
    """Returns the input in words, a line of Python that calls the output, and one that prints the names."""
    inputs = "uint8 [N, 28, 28, 1], N >= 0, in the signature serving_default, and in a call also [N, 28, 28]"
    call = f"import numpy, tensorflow; print(tensorflow.saved_model.load({path!r})({BLANK}))"
    return inputs, call, f"print(open({os.path.join(path, 'assets', NAMES)!r}, encoding='utf-8').read().splitlines())"
