"""An .onnx file, for ONNX Runtime."""

from mnist import Error
from mnist.formats.served import BLANK, PROBE, Served, check_answers, in_float32, without_stderr

import tensorflow as tf

OUTPUT = "model.onnx"


def write(model, path, names):
    """Writes a model with float32 arithmetic, and checks that ONNX Runtime can run it."""
    try:
        import onnxruntime  # here, because these two are an extra
        import tf2onnx
    except ImportError as error:
        raise Error(f"--format=onnx needs {error.name}: pip install tf2onnx onnxruntime.") from None
    with in_float32(model, "ONNX"):
        served = Served(model)
        serve = tf.function(served.answer, input_signature=served.serve.input_signature)
        try:
            with without_stderr():
                content, _ = tf2onnx.convert.from_function(serve, serve.input_signature)
                content.metadata_props.add(key="classes", value=names)
                content = content.SerializeToString()
                # tf2onnx leaves an operation that ONNX lacks as it is, which ONNX Runtime then refuses.
                logits = onnxruntime.InferenceSession(content).run(["logits"], {"images": PROBE})[0]
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise Error(f"ONNX cannot hold this model: {reason}. Take --format=saved_model or keras.") from None
        check_answers(logits, served, "onnx")
    with open(path, "wb") as file:
        file.write(content)


def usage(path, own_classes):
    """Returns the input in words, a line of Python that calls the output, and one that prints the names."""
    session = f"onnxruntime.InferenceSession({path!r})"
    outputs = "['logits', 'probabilities', 'digit']"
    call = f"import numpy, onnxruntime; print({session}.run({outputs}, {{'images': {BLANK}}}))"
    names = f"import onnxruntime; print({session}.get_modelmeta().custom_metadata_map['classes'].splitlines())"
    return "uint8 [N, 28, 28, 1], N >= 0", call, names
