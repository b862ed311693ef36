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

import contextlib
import json
import os
import re
import sys
import tempfile
import zipfile

from mnist import Error, files, finished
from mnist.cli import run
from mnist.model import IMAGE_SHAPE, count_outputs, scale_images
from mnist.settings import Setting, local_path

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

# in the run's folder
_OUTPUTS = {"saved_model": "saved_model", "keras": "model.keras", "tflite": "model.tflite", "onnx": "model.onnx"}
_NAMES = "classes.txt"  # one name a line
_PROBE = np.random.default_rng(0).integers(0, 256, [8, *IMAGE_SHAPE], np.uint8)
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
    write = {"saved_model": _write_saved_model, "keras": _write_keras, "tflite": _write_tflite, "onnx": _write_onnx}
    names = "\n".join(map(str, range(count_outputs(model))) if names is None else names)
    with files.write_errors(f"write {output}"):
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export", dir=parent) as temporary:
            complete = os.path.join(temporary, _OUTPUTS[format])
            own_classes = write[format](model, complete, names)
            os.rename(complete, os.path.abspath(output))
    return own_classes or {}


def _write_saved_model(model, path, names):
    served = Served(model)
    names_path = os.path.join(os.path.dirname(path), _NAMES)
    with open(names_path, "w", encoding="utf-8") as file:
        file.write(names)
    served.classes = tf.saved_model.Asset(names_path)
    for dtype in [tf.uint8, *_OTHER_DTYPES]:  # a loaded function has only these traces
        served.__call__.get_concrete_function(tf.TensorSpec(None, dtype, "images"))
    tf.saved_model.save(served, path, signatures={"serving_default": served.serve})


def _write_keras(model, path, names):
    """Writes a functional model of Keras' own layers if Keras can trace the model, and else a layer around it."""
    served = Served(model)
    try:
        own_classes = _write_keras_around(model.call, served, path)
    except OSError:
        raise
    except Exception:  # a call raises any exception if it uses operations of other packages
        own_classes = _write_keras_around(model, served, path)
    _append_names(path, names)
    return own_classes


def _append_names(path, names):
    """Adds the names to a zip archive. Appends an archive to any other file, as LiteRT stores the files of a model."""
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo(_NAMES), names)  # without the time, so that two exports have the same bytes


def _write_keras_around(call, served, path):
    """Writes a model that calls `call` on scaled images, and checks that it can be loaded. Returns: its own classes."""
    try:
        _functional(call, served.scaled).save(path)
        classes = _own_classes(path)
        logits = keras.models.load_model(path, custom_objects=classes)(_PROBE)["logits"]
    except OSError:
        raise
    except Exception as error:  # Keras raises many, for a lambda or a class without get_config()
        reason = " ".join(str(error).split())[:200]
        raise Error(f"--format=keras cannot hold this model: {reason}. Take --format=saved_model.") from None
    _check_answers(logits, served, "keras")
    return classes


def _check_answers(logits, served, format):
    if not np.allclose(logits, served.answer(_PROBE)["logits"], atol=1e-4):
        raise Error(f"--format={format} cannot hold this model: loaded again, it differs. Take --format=saved_model.")


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


def _write_tflite(model, path, names):
    try:
        make_converter = tf.lite.TFLiteConverter.from_concrete_functions
    except (ImportError, AttributeError):
        raise Error("this TensorFlow has no LiteRT converter: take --format=saved_model or keras.") from None
    with _in_float32(model, "LiteRT"):
        served = Served(model)

        @tf.function(input_signature=served.serve.input_signature)
        def serve(images):  # the reshape refuses other shapes, for which the kernels of LiteRT would end the process
            return served.answer(tf.reshape(images, [-1, *IMAGE_SHAPE]))

        try:
            with _without_stderr():
                content = make_converter([serve.get_concrete_function()], served).convert()
        except Exception as error:
            missing = re.search(r"(?:Select|Custom) ops: (.*)", str(error))
            reason = f"it lacks {missing[1]}" if missing else " ".join(str(error).split())[:200]
            raise Error(f"LiteRT cannot hold this model: {reason}. Take --format=saved_model or keras.") from None
    with open(path, "wb") as file:
        file.write(content)
    _append_names(path, names)


def _write_onnx(model, path, names):
    try:
        import onnxruntime  # here, because these two are an extra
        import tf2onnx
    except ImportError as error:
        raise Error(f"--format=onnx needs {error.name}: pip install tf2onnx onnxruntime.") from None
    with _in_float32(model, "ONNX"):
        served = Served(model)
        serve = tf.function(served.answer, input_signature=served.serve.input_signature)
        try:
            with _without_stderr():
                content, _ = tf2onnx.convert.from_function(serve, serve.input_signature)
                content.metadata_props.add(key="classes", value=names)
                content = content.SerializeToString()
                # tf2onnx leaves an operation that ONNX lacks as it is, which ONNX Runtime then refuses.
                logits = onnxruntime.InferenceSession(content).run(["logits"], {"images": _PROBE})[0]
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise Error(f"ONNX cannot hold this model: {reason}. Take --format=saved_model or keras.") from None
        _check_answers(logits, served, "onnx")
    with open(path, "wb") as file:
        file.write(content)


@contextlib.contextmanager
def _in_float32(model, target):
    """Computes in the type of the weights, float32, where --precision=bfloat16 set mixed_bfloat16."""
    mixed = [layer for layer in model._flatten_layers() if layer.dtype_policy.name == "mixed_bfloat16"]
    policies = [layer.dtype_policy for layer in mixed]
    for layer in mixed:
        layer.dtype_policy = "float32"
    try:
        if any(layer.compute_dtype == "bfloat16" for layer in model._flatten_layers()):
            raise Error(
                f"{target} has no bfloat16, as layers of this model have it: take --format=saved_model or keras."
            )
        yield
    finally:
        for layer, policy in zip(mixed, policies, strict=True):
            layer.dtype_policy = policy


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


def _usage(format, path, own_classes):
    """Returns texts about an output: its input, a line of Python that calls it, a line that reads the names."""
    image = "numpy.zeros([1, 28, 28, 1], 'uint8')"
    names = f"import zipfile; print(zipfile.ZipFile({path!r}).read({_NAMES!r}).decode().splitlines())"
    if format == "saved_model":
        inputs = "uint8 [N, 28, 28, 1], N >= 0, in the signature serving_default, and in a call also [N, 28, 28]"
        call = f"import numpy, tensorflow; print(tensorflow.saved_model.load({path!r})({image}))"
        names = f"print(open({os.path.join(path, 'assets', _NAMES)!r}, encoding='utf-8').read().splitlines())"
    elif format == "keras":
        inputs = "[N, 28, 28, 1], N >= 0, grey levels from 0 to 255 of any type, or floats scaled to [0, 1]"
        modules = "".join(f", {module}" for module in sorted({value.__module__ for value in own_classes.values()}))
        own = ", ".join(f"{name!r}: {value.__module__}.{value.__qualname__}" for name, value in own_classes.items())
        own = f", custom_objects={{{own}}}" if own else ""
        call = f"import keras, numpy{modules}; print(keras.models.load_model({path!r}{own})({image}))"
    elif format == "tflite":
        inputs = (
            "uint8 [N, 28, 28, 1], N >= 1, in the signature serving_default, which checks only the number of pixels"
        )
        call = f"import numpy, tensorflow; model = tensorflow.lite.Interpreter({path!r}).get_signature_runner()"
        call += f"; print(model(images={image}))"
    else:
        inputs = "uint8 [N, 28, 28, 1], N >= 0"
        session = f"onnxruntime.InferenceSession({path!r})"
        call = f"import numpy, onnxruntime; print({session}.run(['logits', 'probabilities', 'digit'], "
        call += f"{{'images': {image}}}))"
        names = f"import onnxruntime; print({session}.get_modelmeta().custom_metadata_map['classes'].splitlines())"
    return inputs, call, names


class Export:
    """The settings of an export."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    checkpoint = finished.which_checkpoint()
    format = Setting(
        "saved_model",
        "A SavedModel is for TensorFlow and its servers, a .keras file for Keras, a .tflite file for LiteRT on phones. "
        "An .onnx file is for ONNX Runtime. All take uint8 images, give logits, probabilities and digit, and hold the "
        "names of the classes.",
        kind=tuple(_OUTPUTS),
    )
    output = Setting(
        None, f"Folder or file to write. Default: {', '.join(_OUTPUTS.values())} in the run.", kind=local_path
    )


def main(options):
    """Exports the model of a run, and prints how to use the output."""
    trained = finished.load(options.workdir, options.checkpoint)
    output = options.output or os.path.join(options.workdir, _OUTPUTS[options.format])
    own_classes = export(trained.model, output, options.format, trained.classes)
    print(f"wrote {output} (step {trained.step})")
    if options.format == "saved_model" and files.is_pattern(output):
        print("TensorFlow's loader takes []*?\\ in a path for a pattern. To load it, move it or link to it elsewhere.")
    if own_classes:
        names = [f"{value.__module__}.{name}" for name, value in own_classes.items()]
        print(f"keras.models.load_model needs custom_objects for {', '.join(names)}.")
    inputs, call, names = _usage(options.format, output, own_classes)
    count, digit = len(trained.classes), "int32" if options.format == "keras" else "int64"
    print(f"input: images {inputs}")
    print(f"outputs: logits float32 [N, {count}], probabilities float32 [N, {count}], digit {digit} [N]")
    print(f"Two lines of Python, which call it and read the names of the classes:\n{call}\n{names}")


if __name__ == "__main__":
    run(main, Export)
