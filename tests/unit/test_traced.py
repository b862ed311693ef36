"""A step whose computation is another than the run's is refused at a resume, and one that no checkpoint can hold."""

from mnist import Error
from mnist.checkpoint import traced, variables_of
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.research.winograd import Winograd
from mnist.step import TrainStep, make_train_loop

import keras
import numpy as np
import pytest
import tensorflow as tf

SCALE = [1.0]
IMAGES, LABELS = tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.uint8)


class Base(TrainStep):
    """A step with more to read than the plain one has."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._first, self._second = tf.Variable(1.0), tf.Variable(2.0)
        self._mask = tf.constant(np.random.default_rng(0).random([28, 28, 1]), tf.float32)


def step(prepare=lambda self, images: images, scalars=lambda self: {}, model=CNN, optimizer=keras.optimizers.SGD):
    """A step of one name, whatever it does."""

    class Own(Base):
        def prepare_batch(self, images, labels):
            images, labels = super().prepare_batch(images, labels)
            return prepare(self, images), labels

        def compute_gradients(self, images, labels):
            gradients, shown = super().compute_gradients(images, labels)
            return gradients, shown | scalars(self)

    return Own(model(), optimizer(0.1))


def digest(made):
    function = make_train_loop(made)[0].get_concrete_function(IMAGES, LABELS)
    return traced.digest_of(function, variables_of(made))


def printed(self, images):
    tf.print("a line", tf.shape(images))
    return images


def clipped(top):
    return lambda self, images: tf.cond(
        self.iterations > 1, lambda: tf.clip_by_value(images, 0.0, top), lambda: images * 1.0
    )


def not_decayed(rate):
    optimizer = keras.optimizers.AdamW(rate)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


CHANGES = {
    "a literal": (lambda self, images: images * 0.5, lambda self, images: images * 0.25),
    "an operation": (lambda self, images: tf.abs(images), lambda self, images: tf.square(images)),
    "a literal in a branch": (clipped(0.5), clipped(0.25)),
    "a variable": (lambda self, images: images * self._first, lambda self, images: images * self._second),
    "an order": (lambda self, images: self._first - images, lambda self, images: images - self._first),
    "a tensor": (lambda self, images: images * self._mask, lambda self, images: images * (self._mask + 0.1)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_that_computes_something_else_has_another_digest(change):
    before, after = (digest(step(prepare)) for prepare in CHANGES[change])
    assert before != after


def test_what_an_optimizer_keeps_to_itself_has_another_digest():
    before, after = (digest(step(optimizer=make)) for make in (keras.optimizers.AdamW, not_decayed))
    assert before != after


def test_a_part_that_xla_compiles_has_another_digest():
    def squared(xla):
        square = tf.function(tf.square, jit_compile=xla)
        return digest(step(lambda self, images: square(images)))

    assert squared(True) != squared(None)


def test_a_global_that_another_process_has_otherwise_has_another_digest(monkeypatch):
    prepare = lambda self, images: images * SCALE[0]  # noqa: E731
    before = digest(step(prepare))
    monkeypatch.setitem(globals(), "SCALE", [2.0])
    assert digest(step(prepare)) != before


def test_what_changes_no_update_leaves_the_digest():
    plain = digest(step())
    assert digest(step(printed)) == plain
    assert digest(step(scalars=lambda self: {"first": self._first * 2.0})) == plain
    keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])  # counts up Keras' names
    assert digest(step()) == plain
    assert digest(step(clipped(0.5))) == digest(step(clipped(0.5)))  # functions' names count up, too


@pytest.mark.parametrize("name", ["plain", "winograd"])
def test_another_process_has_the_same_digest(name, start, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.test_traced import *\nfor _ in range({}): CNN()\nmade = {}\nprint('digest', digest(made))\n".format(
            *((3, "step(clipped(0.5))") if name == "plain" else (1, "Winograd(CNN(), keras.optimizers.Adam())"))
        )
    )
    done = start(script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    here = step(clipped(0.5)) if name == "plain" else Winograd(CNN(), keras.optimizers.Adam())
    assert done.stdout.split() == ["digest", digest(here)]


def train(digits, workdir, made, max_steps):
    return train_and_evaluate(made, digits, str(workdir), max_steps=max_steps, checkpoint_every=2)


def test_an_edited_step_is_refused_before_anything_is_written(digits, tmp_path):
    train(digits, tmp_path, step(CHANGES["a literal"][0]), 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    with pytest.raises(Error, match="holds a run whose step computed something else") as caught:
        train(digits, tmp_path, step(CHANGES["a literal"][1]), 4)
    assert str(caught.value).count("\n") < 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == before
    assert train(digits, tmp_path, step(CHANGES["a literal"][0]), 4)["steps"] == 4


class Table:
    def __init__(self):
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def __call__(self, images):
        self.table.insert(tf.constant([1], tf.int64), tf.constant([2.0]))
        return images


class Draws:
    def __init__(self):
        self.draws = iter(tf.data.Dataset.range(10).repeat())

    def __call__(self, images):
        return images + tf.cast(next(self.draws), tf.float32)


@pytest.mark.parametrize(
    ("make_prepare", "match"),
    [
        (lambda: lambda images: images + tf.random.normal([28, 28, 1]), "draws with RandomStandardNormal"),
        (lambda: tf.image.random_flip_left_right, "draws with RandomUniform"),
        (lambda: lambda images: tf.nn.dropout(images, 0.1), "draws with RandomUniform"),
        (lambda: lambda images: tf.map_fn(tf.random.shuffle, images), "draws with RandomShuffle"),
        (Draws, "IteratorGetNext uses what checkpoints would not hold"),
        (Table, "LookupTableInsertV2 uses what checkpoints would not hold"),
    ],
)
def test_state_that_no_checkpoint_would_hold_is_refused(make_prepare, match, digits, tmp_path):
    prepare = make_prepare()
    with pytest.raises(Error, match=match):
        train(digits, tmp_path, step(lambda self, images: prepare(images)), 2)
    assert not (tmp_path / "checkpoints").exists()


def test_a_table_that_never_changes_is_allowed(digits, tmp_path):
    keys = tf.range(3, dtype=tf.int64)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, tf.range(3.0)), 0.0)
    made = step(lambda self, images: images * table.lookup(tf.constant(1, tf.int64)))
    assert train(digits, tmp_path, made, 2)["steps"] == 2
