"""One contract for every variant in mnist/research: neutral settings, falling loss, exact resume.

It covers each new file. `NEUTRAL` may have its neutral setting.
"""

import ast
import collections
import importlib
import inspect
import pkgutil
import shutil

from mnist import research
from mnist.data import train_batches
from mnist.loop import train_and_evaluate
from mnist.model import CNN
from mnist.research.ema import EMA
from mnist.step import TrainStep, make_train_loop

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import bits_of, nightly_but

# For each file the neutral setting, None if there is none.
NEUTRAL = {
    "adversarial": {"epsilon": 0.0},
    "augment": {"degrees": 0.0, "pixels": 0.0, "scaling": 0.0},
    "class_weights": {"class_weights": []},
    "distillation": {},
    "elastic": {"displacement": 0.0, "degrees": 0.0, "pixels": 0.0, "scaling": 0.0},
    "ema": {"decay": 0.0},
    "fading": {"fade_start": 0},
    "gradient_noise": {},
    "gradient_surgery": {"parity": 0.0},
    "hard_examples": {"pressure": 1.0},
    "label_smoothing": {"smoothing": 0.0},
    "lookahead": {"slow_step": 1.0},
    "lr_range_test": None,
    "mixup": {"alpha": 0.0},
    "muon": {"orthogonal": 0.0},
    "noisy_labels": {"flipped": 0.0, "q": 0.0},
    "plateau": {"factor": 1.0},
    "random_erasing": {"erase": 0.0},
    "rdrop": {"consistency": 0.0},
    "record": None,
    "speedrun": None,
    "sam": {"rho": 0.0},
    "swa": {},
    "wide": None,
    "winograd": None,
}
LEARNING = {"lr_range_test": {"lowest": 0.001}}  # settings that learn in a few steps, where the defaults do not
NAMES = [file.name for file in pkgutil.iter_modules(research.__path__) if not file.name.startswith("_")]
KNOWING_CNN = ["winograd", "record", "speedrun"]  # steps that need the layers of the CNN


def daily(*names):
    """Returns all variants. Those that are not named are `nightly`, except new files without a row above."""
    return nightly_but([*names, *(set(NAMES) - NEUTRAL.keys())], NAMES)


def in_trios(names):
    """Returns compositions of three, as "adversarial+augment+distillation", because compiling takes most time."""
    return ["+".join(names[i : i + 3]) for i in range(0, len(names), 3)]


TRIOS = in_trios([name for name in NAMES if name not in KNOWING_CNN])
STEPS = 26  # of 64, in an epoch of 24 whose last batch has 28 images


def variant(name):
    """Returns the `TrainStep` that a file launches."""
    module = importlib.import_module(f"mnist.research.{name}")
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == "launch"]
    assert len(calls) == 1, f"{module.__file__} does not call train.launch once"
    steps = [*calls[0].args[:1], *(keyword.value for keyword in calls[0].keywords if keyword.arg == "step")]
    return eval(ast.unparse(steps[0]), dict(vars(module))) if steps else TrainStep


class Stateful(keras.Model):
    """A model with layers that write when they are called, an own loss, and an unused head."""

    def __init__(self, dtype=None):
        super().__init__(dtype=dtype)
        layers = keras.layers
        self.conv, self.flatten = layers.Conv2D(4, 5, strides=3, activation="relu"), layers.Flatten()
        self.norm, self.dropout = layers.BatchNormalization(), layers.Dropout(0.3)
        self.dense, self.logits, self.unused = layers.Dense(16, activation="relu"), layers.Dense(10), layers.Dense(3)
        self.conv.build([None, 28, 28, 1])
        for layer, size in ((self.norm, 256), (self.dense, 256), (self.logits, 16), (self.unused, 16)):
            layer.build([None, size])
        self.built = True

    def call(self, images, training=False):
        x = self.dropout(self.norm(self.flatten(self.conv(images)), training=training), training=training)
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(x)))
        return self.logits(self.dense(x))


def make_small(dtype):
    """Makes a network that takes little time. Winograd takes the `CNN` alone."""
    layers = keras.layers
    inner = [layers.Conv2D(4, 5, strides=3, activation="relu", dtype=dtype), layers.Flatten()]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner, layers.Dense(10, dtype=dtype)])


def make_step(cls, dtype="float32", model=CNN, **options):
    keras.utils.set_random_seed(0)
    return cls(model(dtype=dtype), keras.optimizers.Adam(), seed=0, **options)


def run(step, digits, chunks):
    batches = iter(train_batches(digits.train, 64, seed=0))
    _, loop = make_train_loop(step)
    return [loop(batches, tf.constant(n))[0] for n in chunks]


def weights_of(step):
    return [v.numpy() for v in step.model.variables if "seed" not in v.path]


@pytest.fixture(scope="module")
def baseline(digits):
    step = make_step(TrainStep, model=Stateful)
    run(step, digits, [STEPS])
    return weights_of(step)


NEUTRAL_TRIOS = in_trios([name for name in NAMES if NEUTRAL.get(name) is not None])


@pytest.mark.parametrize("names", nightly_but(NEUTRAL_TRIOS[::2], NEUTRAL_TRIOS))
def test_the_neutral_setting_is_the_baseline_bit_for_bit(names, digits, baseline):
    composed = type(names, tuple(map(variant, names.split("+"))), {})
    settings = collections.ChainMap(*(NEUTRAL[name] for name in names.split("+")))
    step = make_step(composed, model=Stateful, **settings)
    run(step, digits, [STEPS])
    for model in (step.model, step.eval_model):
        weights = [v.numpy() for v in model.variables if "seed" not in v.path]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(weights, baseline, strict=True))


@pytest.mark.parametrize("name", daily("adversarial", "lr_range_test", "muon", "winograd"))
def test_the_loss_falls_on_one_batch(name, digits):
    step = make_step(variant(name), model=CNN if name in KNOWING_CNN else Stateful, **LEARNING.get(name, {}))
    batch = [part[:64] for part in digits.train]
    train_step, _ = make_train_loop(step)
    losses = [float(train_step(*map(tf.constant, batch))[0]["loss"]) for _ in range(25)]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


# float32 is what the other tests run in.
RESUMED = [(names, "mixed_bfloat16") for names in TRIOS + KNOWING_CNN] + [("record", "float32")]


@pytest.mark.parametrize("composition", nightly_but([RESUMED[0], RESUMED[-1]], RESUMED), ids="-".join)
def test_composed_with_ema_it_resumes_exactly_at_any_loop_length(composition, digits, tmp_path):
    names, dtype = composition
    classes = [variant(name) for name in names.split("+")]
    if not any(issubclass(cls, EMA) for cls in classes):
        classes.insert(0, EMA)
    composed = type(names, tuple(classes), {})
    model = CNN if names in KNOWING_CNN else make_small
    options = {"epochs": 1, "max_steps": 9, "checkpoint_every": 4}
    straight = make_step(composed, dtype, model)
    train_and_evaluate(straight, digits, str(tmp_path / "straight"), steps_per_loop=9, **options)
    (tmp_path / "stopped" / "checkpoints").mkdir(parents=True)
    for path in (tmp_path / "straight" / "checkpoints").glob("ckpt-4.*"):
        shutil.copy(path, tmp_path / "stopped" / "checkpoints")
    resumed = make_step(composed, dtype, model)
    train_and_evaluate(resumed, digits, str(tmp_path / "stopped"), steps_per_loop=1, **options)
    assert bits_of(resumed) == bits_of(straight)
    assert {name.partition("/")[0] for name in bits_of(straight)} >= {"model", "average", "optimizer"}
