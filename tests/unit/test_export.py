"""Exported models: inputs and answers in each format. The output is complete or absent."""

import json
import os
import resource
import subprocess
import sys

import mnist
from mnist.export import export
from mnist.model import CNN, make_predict_logits, scale_images

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import nightly_but, random_examples
from keras import layers

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated")
ENDINGS = {"saved_model": "", "keras": ".keras", "tflite": ".tflite"}


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


LOAD = {
    "saved_model": lambda path: tf.saved_model.load(path).signatures["serving_default"],
    "keras": load_keras,
    "tflite": lambda path: tf.lite.Interpreter(str(path)).get_signature_runner("serving_default"),
}


@pytest.mark.parametrize("format", LOAD)
@pytest.mark.parametrize("name", MODELS)
def test_answers_as_the_model_does(tmp_path, name, format):
    model, path = MODELS[name](), f"{tmp_path}/out{ENDINGS[format]}"
    for variable in model.variables:  # as in a trained model, whose moving means and variances are not 0 and 1
        variable.assign(variable + 0.01)
    if (name, format) == ("bfloat16", "tflite"):
        with pytest.raises(mnist.Error, match="TFLite has no bfloat16"):
            export(model, path, format)
        assert list(tmp_path.iterdir()) == []
        return
    classes = export(model, path, format)
    own = {"calls TensorFlow": InTensorFlow, "a layer of its own": Doubled}.get(name) if format == "keras" else None
    assert classes == ({own.__name__: own} if own else {})
    with keras.saving.custom_object_scope(classes):
        answer = LOAD[format](path)
    images = random_images(300)
    expected = tf.function(lambda images: model(scale_images(images), training=False))(images).numpy()
    answers = {key: np.asarray(value) for key, value in answer(images=images).items()}
    assert answers.keys() == {"logits", "probabilities", "digit"}
    if format == "tflite":  # its kernels sum the products in another order, which changes a last bit or two
        np.testing.assert_allclose(answers["logits"], expected, rtol=0, atol=4e-6 * abs(expected).max())
    else:
        np.testing.assert_array_equal(answers["logits"], expected)
    np.testing.assert_array_equal(answers["digit"], expected.argmax(axis=1))
    np.testing.assert_allclose(answers["probabilities"], tf.nn.softmax(expected), atol=1e-5)


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
interpreter = tf.lite.Interpreter("model.tflite").get_signature_runner("serving_default")
answers = [loaded(images), keras.models.load_model("model.keras").predict(images, 500, verbose=0)]
answers.append(interpreter(images=images))
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
    ended = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(cases)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
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


def make_bessel():
    return make_around(lambda x: layers.Lambda(tf.math.bessel_i0, output_shape=(784,))(layers.Flatten()(x)))


def make_lambda():
    return make_around(layers.Lambda(lambda x: tf.reshape(x, [-1, 784]), output_shape=(784,)))  # cannot be loaded


@pytest.mark.parametrize(
    ("make_model", "output", "format", "message"),
    [
        (make_bessel, "out.tflite", "tflite", "lacks .*BesselI0"),
        (make_lambda, "out.keras", "keras", "--format=keras cannot hold this model"),
        (CNN, "model.h5", "keras", r"does not end in \.keras"),
        (CNN, "folder", "saved_model", "exists already"),
        (CNN, "file", "saved_model", "exists already"),
        (CNN, "file/served", "saved_model", "cannot write"),
    ],
)
def test_a_refused_export_changes_nothing(tmp_path, capfd, make_model, output, format, message):
    (tmp_path / "folder").mkdir()
    for file in ("file", "folder/mine.txt"):
        (tmp_path / file).write_text("mine")
    with pytest.raises(mnist.Error, match=message) as raised:
        export(make_model(), str(tmp_path / output), format)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "mine.txt"]
    assert (tmp_path / "folder" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", nightly_but(["a[1]"], ["a[1]", "what?", "st*r", "back\\slash", "]"]))
def test_a_folder_that_reads_as_a_pattern(tmp_path, name):
    """TensorFlow can load a SavedModel there only through a link, but files load from anywhere."""
    folder = tmp_path / name
    folder.mkdir()
    export(make_sequential(10), str(folder / name))
    (tmp_path / "link").symlink_to(folder / name)
    loaded = tf.saved_model.load(str(tmp_path / "link"))
    assert loaded(random_images(2))["digit"].shape == (2,)
    for ending in ("keras", "tflite"):
        path = str(folder / f"{name}.{ending}")
        export(make_sequential(10), path, ending)
        assert LOAD[ending](path)(images=random_images(2))["digit"].shape == (2,)


def test_a_tflite_file_takes_whole_images_and_ends_no_process(tmp_path):
    path = str(tmp_path / "m.tflite")
    export(CNN(), path, "tflite")
    assert LOAD["tflite"](path)(images=np.zeros([28, 28, 1], np.uint8))["digit"].shape == (1,)
    for shape in ([2, 1, 1, 1], [2, 40, 40, 1], [2, 27, 28, 1], [1]):
        with pytest.raises(RuntimeError, match="num_input_elements"):
            LOAD["tflite"](path)(images=np.zeros(shape, np.uint8))


@pytest.mark.parametrize("format", LOAD)
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
