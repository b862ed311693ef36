"""Keras' optimizers and learning rates, as the flags of a training command name them."""

import functools
import inspect

from mnist import Error
from mnist.settings import Setting

import keras

OPTIMIZERS = {
    cls.__name__.lower(): cls
    for cls in (
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.Adagrad,
        keras.optimizers.Lamb,
        keras.optimizers.Lion,
        keras.optimizers.Nadam,
        keras.optimizers.RMSprop,
        keras.optimizers.SGD,
    )
}


_setting = functools.partial(Setting, group="optimizer")
_unset = functools.partial(_setting, None, kind=float, low=0.0)


class Rate:
    """What the learning rate is made of."""

    learning_rate = _setting(
        1e-3, "Learning rate, or the schedule's peak, per step. 1e-3 is Keras' default for Adam.", low=0.0, high=1e9
    )
    schedule = _setting(
        "constant",
        "Learning rate over the run; cosine and one_cycle fall to 0 at its end.",
        kind=("constant", "cosine", "one_cycle"),
    )
    warmup = _setting(
        None,
        "Steps of linear rise from a 25th of the rate. Default: 0; with one_cycle 30 % of all steps.",
        kind=int,
        low=0,
    )


class Optimizer:
    """What the optimizer is made of beside its rate. What is not set is as Keras has it."""

    optimizer = _setting("adam", "Keras' optimizer of this name. Adam as in the tutorials.", kind=tuple(OPTIMIZERS))
    beta_1 = _unset("Decay of the mean gradient. Default: Keras', for Adam 0.9.", below=1.0)
    beta_2 = _unset(
        "Decay of the mean squared gradient. Default: Keras', for Adam 0.999; runs of an epoch gain from 0.95.",
        below=1.0,
    )
    weight_decay = _unset(
        "Share of each weight that a step takes off, times the rate. Default: Keras', for AdamW 0.004."
    )
    clipnorm = _unset("Largest norm of one variable's gradient, larger ones are scaled down; 0: any. Default: any.")


def make_learning_rate(schedule, rate, total_steps, warmup=None):
    """Returns the rate for a Keras optimizer: a float, or a `CosineDecay` with linear warm-up.

    `one_cycle` is Smith's policy (arXiv:1708.07120) as it became common: a rise from a 25th of the
    peak during 30 % of the steps, then a cosine to 0.
    """
    if warmup is None:
        warmup = int(0.3 * total_steps) if schedule == "one_cycle" else 0
    cosine_decay = keras.optimizers.schedules.CosineDecay
    if schedule == "constant":
        # A decay to 100 % of the peak is a warm-up alone.
        return cosine_decay(rate / 25, warmup, 1.0, warmup_target=rate, warmup_steps=warmup) if warmup else rate
    if warmup >= total_steps:
        raise Error(f"--warmup={warmup} leaves none of the {total_steps:,} steps to decay in: take fewer.")
    if not warmup:
        return cosine_decay(rate, total_steps)
    return cosine_decay(rate / 25, total_steps - warmup, warmup_target=rate, warmup_steps=warmup)


def make_optimizer(options, learning_rate):
    """Returns the Keras optimizer that a namespace with the settings of `Optimizer` says.

    Raises: `mnist.Error` for a setting that the optimizer does not have.
    """
    cls = OPTIMIZERS[options.optimizer]
    values = {name: getattr(options, name) for name in ("beta_1", "beta_2", "weight_decay", "clipnorm")}
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in inspect.signature(cls).parameters and name.startswith("beta"):
            raise Error(f"--{name} has no part in --optimizer={options.optimizer}: leave it out.")
    return cls(learning_rate, **values)
