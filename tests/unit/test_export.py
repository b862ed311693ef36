"""Exported models: inputs, answers and names of classes in each format. The output is complete or absent."""

import importlib.util
import json
import os
import resource
import subprocess
import sys
import types

import mnist
from mnist import finished
from mnist.export import export, main
from mnist.model import CNN, make_predict_logits, scale_images

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import random_examples
from keras import layers

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated")
ENDINGS = {"saved_model": "", "keras": ".keras", "tflite": ".tflite", "onnx": ".onnx"}
has_onnx = all(map(importlib.util.find_spec, ("tf2onnx", "onnxruntime")))  # an extra
FORMATS = [*("saved_model", "keras", "tflite"), *(["onnx"] if has_onnx else [])]


def random_images(count):
    return random_examples(count)[0][..., np.newaxis]


def make_sequential(classes):
    hidden = [layers.Flatten(), layers.Dense(32, "relu"), layers.BatchNormalization(), layers.Dropout(0.5)]
    return keras.Sequential([keras.Input([28, 28, 1]), *hidden, layers.Dense(classes, name="logits")])


class InTensorFlow(keras.Model):
    """A model that calls TensorFlow, so that Keras cannot trace it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(10)
        self.build([None, 28, 28, 1])

    def build(self, input_shape):
        self.dense.build([None, 784])
        self.built = True

    def call(self, images, training=False):
        return self.dense(tf.reshape(images, [-1, 784]))


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


def make_around(call):
    images = keras.Input([28, 28, 1])
    return keras.Model(images, layers.Dense(10)(call(images)))


MODELS = {
    "CNN": CNN,
    "bfloat16": lambda: CNN(dtype="mixed_bfloat16"),
    "sequential of 7 classes": lambda: make_sequential(7),
    "calls TensorFlow": InTensorFlow,
    "a layer of its own": lambda: make_around(lambda x: layers.Flatten()(Doubled()(x))),
}


def load_keras(path):
    model = tf.function(keras.models.load_model(path))
    return lambda images: model(images)


def load_onnx(path):
    session, names = importlib.import_module("onnxruntime").InferenceSession(path), ["logits", "probabilities", "digit"]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


LOAD = {
    "saved_model": lambda path: tf.saved_model.load(path).signatures["serving_default"],
    "keras": load_keras,
    "tflite": lambda path: tf.lite.Interpreter(str(path)).get_signature_runner("serving_default"),
    "onnx": load_onnx,
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_answers_as_the_model_does(tmp_path, name, format):
    model, path = MODELS[name](), f"{tmp_path}/out{ENDINGS[format]}"
    for variable in model.variables:  # as in a trained model, whose moving means and variances are not 0 and 1
        variable.assign(variable + 0.01)
    images = random_images(300)
    classes = export(model, path, format)
    if name == "bfloat16" and format in ("tflite", "onnx"):  # these have no bfloat16, and get float32
        assert model.conv1.compute_dtype == "bfloat16"
        weights, model = model.get_weights(), CNN()
        model.set_weights(weights)
    own = {"calls TensorFlow": InTensorFlow, "a layer of its own": Doubled}.get(name) if format == "keras" else None
    assert classes == ({own.__name__: own} if own else {})
    with keras.saving.custom_object_scope(classes):
        answer = LOAD[format](path)
    expected = tf.function(lambda images: model(scale_images(images), training=False))(images).numpy()
    answers = {key: np.asarray(value) for key, value in answer(images=images).items()}
    assert answers.keys() == {"logits", "probabilities", "digit"}
    if format != "tflite":
        assert answer(images=images[:0])["logits"].shape == (0, expected.shape[1])
    if format in ("tflite", "onnx"):  # their kernels sum the products in another order, which changes a last bit or two
        np.testing.assert_allclose(answers["logits"], expected, rtol=0, atol=4e-6 * abs(expected).max())
    else:
        np.testing.assert_array_equal(answers["logits"], expected)
    np.testing.assert_array_equal(answers["digit"], expected.argmax(axis=1))
    np.testing.assert_allclose(answers["probabilities"], tf.nn.softmax(expected), atol=1e-5)
    for scaled in (images / np.float32(127.5) - 1, (images - np.float32(33)) / 79):  # not cast to blank images
        with pytest.raises(Exception, match=r"is not in \[0, 256\)|xpect.*(uint8|UINT8)"):
            answer(images=scaled if format in ("tflite", "onnx") else tf.constant(scaled))
    if format == "tflite":  # takes whole images, and no input ends the process
        assert answer(images=np.zeros([28, 28, 1], np.uint8))["digit"].shape == (1,)
        for shape in ([2, 1, 1, 1], [2, 40, 40, 1], [2, 27, 28, 1], [1]):
            with pytest.raises(RuntimeError, match="num_input_elements"):
                answer(images=np.zeros(shape, np.uint8))


def test_a_keras_file_takes_grey_levels_and_scaled_floats_and_converts_to_litert(tmp_path):
    model, images, path = CNN(), random_images(20), f"{tmp_path}/m.tflite"
    expected = make_predict_logits(model)(images).numpy()
    export(model, f"{tmp_path}/m.keras", "keras")
    loaded = keras.models.load_model(f"{tmp_path}/m.keras")
    for same in (images, images * 1.0, images / 255, np.float32(images / 255)):
        np.testing.assert_array_equal(loaded.predict(same, verbose=0)["logits"], expected)
    loaded.export(path, format="litert", verbose=False)
    answers = tf.lite.Interpreter(path).get_signature_runner()(images=np.float32(images))
    np.testing.assert_allclose(answers["logits"], expected, rtol=0, atol=4e-6 * abs(expected).max())


@pytest.mark.parametrize("format", FORMATS)
def test_the_printed_lines_call_the_output_and_read_the_names(tmp_path, monkeypatch, capsys, format):
    names = ["T-shirt/top", "größer 'b'", *"cdefghij"]
    run = types.SimpleNamespace(model=MODELS["a layer of its own"](), step=3, classes=names)
    monkeypatch.setattr(finished, "load", lambda workdir, which: run)
    main(types.SimpleNamespace(workdir=f"{tmp_path}/it's", checkpoint="newest", format=format, output=None))
    for line in (text := capsys.readouterr().out.splitlines())[-2:]:
        exec(line, {})
    called = capsys.readouterr().out
    assert called.endswith(f"{names}\n")
    assert "0.1" in called  # the probabilities of a blank image for a model without training
    assert "logits float32 [N, 10], probabilities float32 [N, 10], digit int" in text[-4]


# Another program does not have this package, and no input ends it.
CLIENT = """
import json, sys
sys.modules["mnist"] = None
import keras, numpy as np, tensorflow as tf
loaded = tf.saved_model.load("served")
call = lambda images: loaded(tf.constant(images))
serve = lambda images: loaded.signatures["serving_default"](images=tf.constant(images))
def outcome(answer, images):
    try:
        answers = answer(images)
    except Exception as error:
        return type(error).__name__
    return sorted((name, value.shape.as_list()) for name, value in answers.items())
cases = [tuple(case) for case in json.loads(sys.argv[1])]
outcomes = [[outcome(f, np.ones(shape, dtype)) for f in (call, loaded, serve)] for shape, dtype in cases]
images = np.load("images.npy")
answers = [loaded(images), keras.models.load_model("model.keras").predict(images, 500, verbose=0)]
answers.append(tf.lite.Interpreter("model.tflite").get_signature_runner()(images=images))
print(json.dumps([outcomes, [np.asarray(answer["logits"]).tolist() for answer in answers]]))
"""


def test_another_program(tmp_path):
    model, images = make_sequential(10), random_images(5)
    export(model, str(tmp_path / "served"))
    export(model, str(tmp_path / "model.keras"), "keras")
    export(model, str(tmp_path / "model.tflite"), "tflite")
    np.save(tmp_path / "images.npy", images)
    good = [(3, 28, 28, 1), (1, 28, 28, 1), (0, 28, 28, 1)]
    without_channel = [(3, 28, 28), (0, 28, 28)]
    bad = [(1, 32, 32, 1), (1, 28, 28, 3), (1, 1, 28, 28), (28, 28), (28, 28, 1), (1, 784), (), (0,), (1, 1, 28, 28, 1)]
    cases = [(shape, "uint8") for shape in good + without_channel + bad]
    others = ["float32", "float64", "float16", "int64", "int32", "int8", "bool", "complex64", "str"]
    cases += [((1, 28, 28, 1), dtype) for dtype in others]
    command, environment = [sys.executable, "-c", CLIENT, json.dumps(cases)], os.environ | {"PYTHONPATH": ""}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    outcomes, logits = json.loads(ended.stdout.splitlines()[-1])
    for (shape, dtype), (of_tensor, of_array, of_signature) in zip(cases, outcomes, strict=True):
        count = shape[:1]
        answers = [["digit", [*count]], ["logits", [*count, 10]], ["probabilities", [*count, 10]]]
        taken = dtype == "uint8" and shape in good + without_channel
        assert of_tensor == of_array == (answers if taken else "InvalidArgumentError"), (shape, dtype)
        assert of_signature == (answers if taken and shape in good else "InvalidArgumentError"), (shape, dtype)
    expected = make_predict_logits(model)(images).numpy()
    np.testing.assert_array_equal(np.float32(logits[:2]), [expected, expected])
    np.testing.assert_allclose(logits[2], expected, rtol=0, atol=4e-6 * abs(expected).max())


REFUSED = {
    "bessel": lambda x: layers.Lambda(tf.math.bessel_i0, output_shape=(784,))(layers.Flatten()(x)),
    "lambda": layers.Lambda(lambda x: tf.reshape(x, [-1, 784]), output_shape=(784,)),  # Keras does not load it
}


@pytest.mark.parametrize(
    ("call", "output", "format", "message"),
    [
        ("bessel", "out.tflite", "tflite", "lacks .*BesselI0"),
        ("bessel", "out.onnx", "onnx", "BesselI0" if has_onnx else "needs .*: pip install tf2onnx onnxruntime"),
        ("lambda", "out.keras", "keras", "--format=keras cannot hold this model"),
        (None, "model.h5", "keras", r"does not end in \.keras"),
        (None, "folder", "saved_model", "exists already"),
        (None, "file", "saved_model", "exists already"),
        (None, "file/served", "saved_model", "cannot write"),
    ],
)
def test_a_refused_export_changes_nothing(tmp_path, capfd, call, output, format, message):
    (tmp_path / "folder").mkdir()
    for file in ("file", "folder/mine.txt"):
        (tmp_path / file).write_text("mine")
    with pytest.raises(mnist.Error, match=message) as raised:
        export(make_around(REFUSED[call]) if call else CNN(), str(tmp_path / output), format)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "mine.txt"]
    assert (tmp_path / "folder" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_stays_when_writing_fails_midway(tmp_path, format):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = CNN()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # the weights take 373 kB
    try:
        with pytest.raises(mnist.Error, match="cannot write") as raised:
            export(model, f"{tmp_path}/served{ENDINGS[format]}", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
