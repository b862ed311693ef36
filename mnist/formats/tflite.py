"""A .tflite file, for LiteRT on phones."""

import re

from mnist import Error
from mnist.formats.served import BLANK, Served, append_names, in_float32, read_appended_names, without_stderr
from mnist.model import IMAGE_SHAPE

import tensorflow as tf

OUTPUT = "model.tflite"


def write(model, path, names):
    """Writes a model with float32 arithmetic."""
    try:
        make_converter = tf.lite.TFLiteConverter.from_concrete_functions
    except (ImportError, AttributeError):
        raise Error("this TensorFlow has no LiteRT converter: take --format=saved_model or keras.") from None
    with in_float32(model, "LiteRT"):
        served = Served(model)

        @tf.function(input_signature=served.serve.input_signature)
        def serve(images):  # the reshape refuses other shapes, for which the kernels of LiteRT would end the process
            return served.answer(tf.reshape(images, [-1, *IMAGE_SHAPE]))

        try:
            with without_stderr():
                content = make_converter([serve.get_concrete_function()], served).convert()
        except Exception as error:
            missing = re.search(r"(?:Select|Custom) ops: (.*)", str(error))
            reason = f"it lacks {missing[1]}" if missing else " ".join(str(error).split())[:200]
            raise Error(f"LiteRT cannot hold this model: {reason}. Take --format=saved_model or keras.") from None
    with open(path, "wb") as file:
        file.write(content)
    append_names(path, names)


def usage(path, own_classes):
    """Returns the input in words, a line of Python that calls the output, and one that prints the names."""
    inputs = "uint8 [N, 28, 28, 1], N >= 1, in the signature serving_default, which checks only the number of pixels"
    call = f"import numpy, tensorflow; model = tensorflow.lite.Interpreter({path!r}).get_signature_runner()"
    return inputs, f"{call}; print(model(images={BLANK}))", read_appended_names(path)
