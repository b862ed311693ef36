"""Keras' optimizers and learning rates, as the flags of a training command name them."""

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


class Rate:
    """What the learning rate is made of."""

    learning_rate = Setting(
        1e-3,
        "Learning rate, or the schedule's peak, per step. 1e-3 is Keras' default for Adam.",
        low=0.0,
        high=1e9,
        group="optimizer",
    )
    schedule = Setting(
        "constant",
        "Learning rate over the run; cosine and one_cycle fall to 0 at its end.",
        kind=("constant", "cosine", "one_cycle"),
        group="optimizer",
    )
    warmup = Setting(
        None,
        "Steps of linear rise from a 25th of the rate. Default: 0; with one_cycle 30 % of all steps.",
        kind=int,
        low=0,
        group="optimizer",
    )


class Optimizer:
    """What the optimizer is made of beside its rate. Those that are not set are as Keras has them."""

    optimizer = Setting(
        "adam", "Keras' optimizer of this name. Adam as in the tutorials.", kind=tuple(OPTIMIZERS), group="optimizer"
    )
    beta_1 = Setting(
        None,
        "Decay of the mean gradient. Default: Keras', for Adam 0.9.",
        kind=float,
        low=0.0,
        below=1.0,
        group="optimizer",
    )
    beta_2 = Setting(
        None,
        "Decay of the mean squared gradient. Default: Keras', for Adam 0.999; runs of an epoch gain from 0.95.",
        kind=float,
        low=0.0,
        below=1.0,
        group="optimizer",
    )
    weight_decay = Setting(
        None,
        "Share of each weight that a step takes off, times the rate. Default: Keras', for AdamW 0.004, else none.",
        kind=float,
        low=0.0,
        group="optimizer",
    )
    clipnorm = Setting(
        None,
        "Largest norm of the gradient of one variable; a larger one is scaled down; 0: none. Default: none.",
        kind=float,
        low=0.0,
        group="optimizer",
    )


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
