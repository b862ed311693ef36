"""The exported function, and the checks and parts that several formats share."""

import contextlib
import os
import sys
import zipfile

from mnist import Error
from mnist.model import IMAGE_SHAPE, scale_images

import numpy as np
import tensorflow as tf

NAMES = "classes.txt"  # one name a line
BLANK = "numpy.zeros([1, 28, 28, 1], 'uint8')"  # the images in a printed call
PROBE = np.random.default_rng(0).integers(0, 256, [8, *IMAGE_SHAPE], np.uint8)


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


def append_names(path, names):
    """Adds the names to a zip archive. Appends an archive to any other file, as LiteRT stores the files of a model."""
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo(NAMES), names)  # without the time, so that two exports have the same bytes


def read_appended_names(path):
    """Returns a line of Python that prints the names which `append_names` wrote."""
    return f"import zipfile; print(zipfile.ZipFile({path!r}).read({NAMES!r}).decode().splitlines())"


def check_answers(logits, served, format):
    """Raises `mnist.Error` if a loaded output gives other logits for `PROBE`, `[8, classes]`, than `Served`."""
    if not np.allclose(logits, served.answer(PROBE)["logits"], atol=1e-4):
        raise Error(f"--format={format} cannot hold this model: loaded again, it differs. Take --format=saved_model.")


@contextlib.contextmanager
def in_float32(model, target):
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
def without_stderr():
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
