"""A model, an optimizer and a step are trained as `fit` trains them, or refused. A resume is exact, or refused."""

import dataclasses
import functools
import json
import os
import pathlib

from mnist import Error, checkpoint
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN
from mnist.research.augment import Augment
from mnist.research.ema import EMA
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import StopAfter, make_linear

layers, optimizers = keras.layers, keras.optimizers


def train(tmp_path, digits, step=TrainStep, model=make_linear, optimizer=optimizers.SGD, steps=3, **settings):
    keras.utils.set_random_seed(0)
    step = step(model(), optimizer(), **settings)
    train_and_evaluate(step, digits, str(tmp_path / "run"), epochs=1, max_steps=steps, steps_per_loop=2)
    return step


def is_refused(match, *args, **kwargs):
    with pytest.raises(Error, match=match) as caught:
        train(*args, **kwargs)
    assert str(caught.value).count("\n") < 2


class OwnTraining(keras.Sequential):
    def train_step(self, data):
        return {}


class OwnSchedule(optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


def under(policy, make):
    keras.config.set_dtype_policy(policy)
    try:
        return make()
    finally:
        keras.config.set_dtype_policy("float32")


def compiled(**config):
    def make():
        model = make_linear()
        model.compile("adam", **config)
        return model

    return make


def frozen():
    model = make_linear()
    model.trainable = False
    return model


def scaling(*inner):
    return keras.Sequential([keras.Input([28, 28, 1]), *inner, *make_linear().layers, layers.Rescaling(0.01)])


def built_for_another():
    optimizer = optimizers.Adam()
    optimizer.build(make_linear().trainable_variables)
    return optimizer


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"model": lambda: make_linear(activation="sigmoid")}, "a sigmoid at its end.*logits"),
        ({"model": lambda: keras.Sequential([make_linear(), layers.Dense(7)])}, r"\[8, 7\], expected \[B, 10\]"),
        (
            {"model": lambda: OwnTraining([keras.Input([28, 28, 1]), *make_linear().layers])},
            "OwnTraining has a train_step of its own",
        ),
        ({"model": compiled(loss="mse")}, "compiled with another loss"),
        ({"model": lambda: make_linear(layers.Masking())}, "answers with a mask"),
        ({"model": lambda: keras.Sequential([layers.Dense(10)])}, "the Sequential is not built"),
        ({"model": lambda: None}, "the model is a NoneType, expected a keras.Model"),
        ({"optimizer": lambda: "adam"}, "the optimizer is a str, expected one of keras.optimizers"),
        (
            {"optimizer": lambda: optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.1)))},
            "MultiOptimizer has no learning rate",
        ),
        ({"model": frozen}, "no trainable variables"),
        ({"model": lambda: scaling(layers.Rescaling(1 / 255))}, r"they are in \[0, 1\]"),
        ({"model": lambda: scaling(keras.Sequential([layers.Rescaling(1 / 127.5, -1)]))}, r"they are in \[0, 1\]"),
        ({"optimizer": built_for_another}, "Adam was built for the variables of another model"),
        ({"optimizer": lambda: optimizers.Adam(OwnSchedule())}, "get_config"),
    ],
)
def test_a_model_or_optimizer_that_fit_would_train_otherwise_is_refused_at_the_start(options, match, digits, tmp_path):
    is_refused(match, tmp_path, digits, **options)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "model",
    [
        compiled(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="own"), metrics=["accuracy"]),
        lambda: scaling(layers.Normalization(mean=0.13, variance=0.095)),
        lambda: scaling(layers.Rescaling(255.0), layers.Rescaling(1 / 255)),
    ],
)
def test_a_model_that_fit_would_train_the_same_is_taken(model):
    TrainStep(model(), optimizers.SGD())


def test_an_optimizer_that_averages_is_evaluated_with_averages(digits, tmp_path):
    def make():
        model = CNN()
        model.conv1.trainable = False  # get_config() leaves it out
        return model

    averaging = functools.partial(optimizers.SGD, 0.5, use_ema=True, ema_momentum=0.9)
    step = train(tmp_path, digits, model=make, optimizer=averaging, steps=4)
    tensors, _ = checkpoint.load_newest(str(tmp_path / "run" / "checkpoints"))
    for i, (raw, averaged) in enumerate(zip(step.model.get_weights(), step.eval_model.get_weights(), strict=True)):
        assert np.array_equal(raw, averaged) == (i < 2)  # kernel and bias of the frozen layer
        assert np.array_equal(tensors[f"eval_model/{i}"], averaged)
        assert np.array_equal(tensors[f"model/{i}"], raw)


def test_float16_trains_with_a_scaled_loss_as_compile_has_it(digits, tmp_path):
    step = train(tmp_path, digits, model=lambda: under("mixed_float16", lambda: make_linear(dtype="float32")))
    assert isinstance(step.optimizer, optimizers.LossScaleOptimizer)
    assert int(step.iterations) == 3


def test_variables_of_any_type_are_averaged(digits, tmp_path):
    def model():
        return make_linear(*(layers.Dense(10, dtype=dtype) for dtype in ("float64", "bfloat16")), dtype="float32")

    step = train(tmp_path, digits, step=EMA, model=model, optimizer=lambda: optimizers.SGD(0.05), steps=24)
    keras.utils.set_random_seed(0)
    for weights in zip(*(m.get_weights() for m in (step.eval_model, step.model, model())), strict=True):
        average, last, first = (np.asarray(values, np.float64) for values in weights)
        assert 0 < np.abs(average - last).mean() < np.abs(first - last).mean()


def test_an_average_follows_the_whole_update_in_any_order(digits, tmp_path):
    class Halved(TrainStep):
        def apply_gradients(self, gradients):
            super().apply_gradients(gradients)
            for variable in self.model.trainable_variables:
                variable.assign(0.5 * variable.value)

    orders = [type("Either", bases, {}) for bases in ((Halved, EMA), (EMA, Halved))]
    steps = [train(tmp_path / str(i), digits, step=order) for i, order in enumerate(orders)]
    first, second = (step.eval_model.get_weights() for step in steps)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


class Holder(TrainStep):
    def __init__(self, *args, values, **kwargs):
        super().__init__(*args, **kwargs)
        vars(self).update(values)


class Configured(keras.Model):
    """A model without a get_config()."""

    def __init__(self, rate):
        super().__init__()
        self.inner = make_linear(layers.Dropout(rate))
        self.built = True

    def call(self, images, training=False):
        return self.inner(images, training=training)


def hidden(activation="relu", rate=0.3, scale=2, evaluated=2, **kwargs):
    scaled = layers.Lambda(lambda x, training=False: (scale if training else evaluated) * x, output_shape=(8,))
    return make_linear(layers.Dense(8, activation=activation), scaled, layers.Dropout(rate), **kwargs)


@pytest.mark.parametrize(
    ("first", "changes"),
    [
        (
            hidden,
            {
                "precision was float32, is mixed_bfloat16": lambda: under("mixed_bfloat16", hidden),
                "rate was 0.3, is 0.9": lambda: hidden(rate=0.9),
                "activation was relu, is tanh": lambda: hidden("tanh"),
                "kernel_regularizer was None": lambda: hidden(kernel_regularizer="l2"),
                "step computed something else": lambda: hidden(scale=3),
                "model answered otherwise where it is evaluated": lambda: hidden(evaluated=3),
                r"model\.layers was .*Dropout, Dense, is .*Dropout, Dense, ELU": lambda: keras.Sequential(
                    [keras.Input([28, 28, 1]), *hidden().layers, layers.ELU()]
                ),
            },
        ),
        (lambda: Configured(0.3), {"rate was 0.3, is 0.9": lambda: Configured(0.9)}),
    ],
)
def test_another_model_is_refused_and_the_same_resumes(first, changes, digits, tmp_path):
    train(tmp_path, digits, model=first, steps=2)
    for match, second in changes.items():
        is_refused(match, tmp_path, digits, model=second)
    train(tmp_path, digits, model=first, steps=3)


@dataclasses.dataclass
class Options:
    size: int


VALUES = {
    "of_numpy": (np.float32(0.1), np.float32(0.2)),
    "large_array": (np.zeros([50, 50]), np.eye(50)),
    "of_tensorflow": (tf.constant(0.1), tf.constant(0.2)),
    "in_a_dict": ({"a": None}, {"a": 1}),
    "in_a_dataclass": (Options(1), Options(2)),
    "a_path": (pathlib.Path("a"), pathlib.Path("b")),
    "a_function": (lambda x: x + 1, lambda x: x + 2),
    "nan": (float("nan"), 1.0),
}


def test_another_value_of_an_attribute_is_refused_and_the_same_resumes(digits, tmp_path):
    first = {name: value for name, (value, _) in VALUES.items()}
    train(tmp_path, digits, step=Holder, values=first, steps=2)
    for name, (_, second) in VALUES.items():
        is_refused(
            rf"(other settings: |the code of ){name}\b", tmp_path, digits, step=Holder, values=first | {name: second}
        )
    train(tmp_path, digits, step=Holder, values=first, steps=3)


def test_objects_and_the_names_that_keras_counts_up_are_not_a_difference(digits, tmp_path):
    for steps in (2, 3):
        train(
            tmp_path,
            digits,
            step=Holder,
            # Keras calls the first layer elu in one process and elu_1 in another. It is also the name of a function.
            model=lambda: make_linear(layers.ELU(), layers.Dense(8, activation="elu")),
            optimizer=lambda: optimizers.LossScaleOptimizer(optimizers.Adam()),
            values={"value": {layers.Flatten(): 0.1, "other": object()}},
            steps=steps,
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda: os.environ.update(ONEDNN_FPMATH="BF16"), "ONEDNN_FPMATH was None, is BF16"),
        (lambda: keras.config.set_epsilon(1e-5), "epsilon was 1e-07, is 1e-05"),
    ],
)
def test_other_arithmetic_in_the_whole_process_is_refused(change, match, digits, tmp_path):
    train(tmp_path, digits, steps=2)
    change()
    try:
        is_refused(match, tmp_path, digits)
    finally:
        os.environ.pop("ONEDNN_FPMATH", None)
        keras.config.set_epsilon(1e-7)


def test_a_run_that_goes_on_has_no_results_until_it_ends(digits, tmp_path):
    train(tmp_path, digits)
    assert (tmp_path / "run" / "results.json").exists()
    keras.utils.set_random_seed(0)
    step = TrainStep(make_linear(), optimizers.SGD())
    with pytest.raises(Interrupted):
        train_and_evaluate(step, digits, str(tmp_path / "run"), epochs=9, steps_per_loop=2, interrupt=StopAfter(2))
    assert not (tmp_path / "run" / "results.json").exists()


def test_an_operation_that_xla_cannot_compile_is_named_in_one_line(digits, tmp_path):
    step = Augment(make_linear(), optimizers.SGD())
    with pytest.raises(Error, match=r"cannot compile the operation ImageProjectiveTransformV3.*leave out --jit_comp"):
        train_and_evaluate(step, digits, str(tmp_path / "run"), jit_compile=True)


def test_metrics_and_scalars_that_are_nan_are_null_in_results_and_named_once(digits, tmp_path, capsys):
    class Undecided(TrainStep):
        def compute_gradients(self, images, labels):
            gradients, scalars = super().compute_gradients(images, labels)
            return gradients, scalars | {"ratio": tf.where(self.iterations < 1, 1.0, np.nan)}

        def extra_metrics(self, images, labels, logits):
            return {"recall": float("nan"), "shift": np.float32("inf"), "right": tf.constant(0.5)}

    train(tmp_path, digits, Undecided, steps=6)
    assert capsys.readouterr().out.count("ratio is nan at step 2, so its mean is null.\n") == 1

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    results = json.loads((tmp_path / "run" / "results.json").read_text(), parse_constant=refuse)
    found = [results[f"{part}_{name}"] for part in ("validation", "test") for name in ("recall", "shift", "right")]
    assert found == [None, None, 0.5] * 2
    assert results["train_ratio"] is None
    assert results["train_loss"] > 0
