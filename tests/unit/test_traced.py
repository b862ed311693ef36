"""A resume with a step that computes something else is refused, and so is a step whose state no checkpoint can hold."""

import types

from mnist import Error
from mnist.checkpoint import traced, variables_of
from mnist.loop import train_and_evaluate
from mnist.step import TrainStep, make_train_loop

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import make_linear

IMAGES, LABELS = tf.TensorSpec([None, 28, 28, 1], tf.uint8), tf.TensorSpec([None], tf.uint8)


class Base(TrainStep):
    """A step with variables and a constant that its pieces may read."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._first, self._second = tf.Variable(1.0), tf.Variable(2.0)
        self._mask = tf.constant(np.random.default_rng(0).random([28, 28, 1]), tf.float32)


def step(prepare=lambda self, images: images, scalars=lambda self: {}, optimizer=keras.optimizers.SGD):
    """Returns a step whose class always has the same name."""

    class Own(Base):
        def prepare_batch(self, images, labels):
            images, labels = super().prepare_batch(images, labels)
            return prepare(self, images), labels

        def compute_gradients(self, images, labels):
            gradients, shown = super().compute_gradients(images, labels)
            return gradients, shown | scalars(self)

    return Own(make_linear(), optimizer(0.1))


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


def squared(xla):
    square = tf.function(tf.square, jit_compile=xla)
    return lambda self, images: square(images)


def scaled(factor):
    return lambda self, images: images * factor


# Pairs of arguments of `step`.
CHANGES = {
    "a literal": ({"prepare": scaled(0.5)}, {"prepare": scaled(0.25)}),
    "a literal in a branch": ({"prepare": clipped(0.5)}, {"prepare": clipped(0.25)}),
    "a variable": (
        {"prepare": lambda self, images: images * self._first},
        {"prepare": lambda self, images: images * self._second},
    ),
    "a tensor": (
        {"prepare": lambda self, images: images * self._mask},
        {"prepare": lambda self, images: images * (self._mask + 0.1)},
    ),
    "a part that XLA compiles": ({"prepare": squared(True)}, {"prepare": squared(None)}),
    "what an optimizer does not decay": ({"optimizer": keras.optimizers.AdamW}, {"optimizer": not_decayed}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_that_computes_something_else_has_another_digest(change):
    before, after = (digest(step(**options)) for options in CHANGES[change])
    assert before != after


def test_the_digest_ignores_all_that_changes_no_update():
    plain = digest(step())
    assert digest(step(printed)) == plain
    assert digest(step(scalars=lambda self: {"first": self._first * 2.0})) == plain
    keras.Sequential([keras.Input([3]), keras.layers.Dense(2)])  # counts up Keras' names
    assert digest(step()) == plain
    assert digest(step(clipped(0.5))) == digest(step(clipped(0.5)))  # functions' names count up, too


def test_variables_are_found_in_attributes_of_any_kind_and_depth():
    variables, module = [tf.Variable(float(i)) for i in range(5)], tf.Module()
    weight, metric, model = keras.Variable(1.0), keras.metrics.Mean(), make_linear()
    generators = [tf.random.Generator.from_seed(1) for _ in range(2)]
    seeds = keras.random.SeedGenerator(1)
    module.state, module.layer, module.generator, module.back = variables[3], model.layers[-1], generators[1], module
    by_name = {"b": variables[0], "a": [variables[1], (weight,)], 3: {"c": variables[4]}}
    parts = {"metric": metric, "generator": generators[0], "seeds": seeds, "inner": [module], "nothing": "no state"}
    found = variables_of(types.SimpleNamespace(by_name=by_name, teachers=[{"of": make_linear()}, model], **parts))
    assert len(found) == 16
    expected = [variables[0], variables[1], variables[4], weight.value, generators[0].state, generators[1].state]
    expected += [seeds.state.value, variables[3], *(v.value for v in [*metric.variables, *model.variables])]
    assert {id(variable) for variable in expected} <= {id(variable) for variable in found.values()}
    assert [*found][-1] == "inner/3"


def train(digits, workdir, made, max_steps):
    return train_and_evaluate(made, digits, str(workdir), max_steps=max_steps, checkpoint_every=2)


def test_an_edited_step_is_refused_before_anything_is_written(digits, tmp_path):
    def contents():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    train(digits, tmp_path, step(scaled(0.5)), 2)
    before = contents()
    for max_steps in (4, 2):  # also where the run is finished, and its results would only be printed again
        with pytest.raises(Error, match="holds a run whose step computed something else") as caught:
            train(digits, tmp_path, step(scaled(0.25)), max_steps)
        assert str(caught.value).count("\n") < 2
        assert contents() == before
    for max_steps in (2, 4):
        assert train(digits, tmp_path, step(scaled(0.5)), max_steps)["steps"] == max_steps


class Hidden:
    def __init__(self):
        self.by = types.SimpleNamespace(scale=tf.Variable(1.0, name="hidden_scale"))

    def __call__(self, images):
        return images * self.by.scale


class Table:
    def __init__(self):
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def __call__(self, images):
        self.table.insert(tf.constant([1], tf.int64), tf.constant([2.0]))
        return images


@pytest.mark.parametrize(
    ("make_prepare", "match"),
    [
        (lambda: lambda images: images + tf.random.normal([28, 28, 1]), "draws with RandomStandardNormal"),
        (lambda: tf.image.random_flip_left_right, "draws with RandomUniform"),
        (lambda: lambda images: tf.map_fn(tf.random.shuffle, images), "draws with RandomShuffle"),
        (Hidden, "uses the variable hidden_scale"),
        (lambda: lambda x: x + tf.random.get_global_generator().normal([28, 28, 1]), "uses the variable .*/StateVar"),
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
