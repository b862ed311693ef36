"""Keras' optimizers and learning rates, as the flags of a training command name them."""

import functools
import inspect

from mnist import Error
from mnist.settings import Setting

import keras

OPTIMIZERS = {
    name.lower(): getattr(keras.optimizers, name)
    for name in ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Nadam", "RMSprop", "SGD")
}
_setting = functools.partial(Setting, group="optimizer")
_unset = functools.partial(_setting, None, kind=float, low=0.0)


class Rate:
    """The settings of the learning rate."""

    learning_rate = _setting(
        1e-3, "Learning rate, or the peak of its schedule. 1e-3 is Keras' default for Adam.", low=0.0, high=1e9
    )
    schedule = _setting(
        "constant",
        "Learning rate over the run; cosine and one_cycle fall to 0 at its end.",
        kind=("constant", "cosine", "one_cycle"),
    )
    warmup = _setting(
        None,
        "Steps of a linear rise from a 25th of the rate. Default: 0; with one_cycle 30 % of all steps.",
        kind=int,
        low=0,
    )


class Optimizer:
    """The settings of the optimizer except for its rate. The default of an unset one is Keras'."""

    optimizer = _setting("adam", "Keras' optimizer of this name. Adam as in the tutorials.", kind=tuple(OPTIMIZERS))
    beta_1 = _unset("Decay of the mean gradient. Default: Keras', for Adam 0.9.", below=1.0)
    beta_2 = _unset(
        "Decay of the mean squared gradient. Default: Keras', for Adam 0.999. Runs of one epoch gain from 0.95.",
        below=1.0,
    )
    weight_decay = _unset("Share of each weight that a step removes, times the rate. Default: Keras', for AdamW 0.004.")
    clipnorm = _unset(
        "Largest norm of one variable's gradient; larger gradients are scaled down. Default and 0: no limit."
    )


def make_learning_rate(schedule, rate, total_steps, warmup=None):
    """Makes the learning rate of a Keras optimizer: a float, or a `CosineDecay` with linear warm-up.

    `one_cycle` is the common form of Smith's policy (arXiv:1708.07120). It rises from a 25th of the peak during 30 %
    of the steps, then falls to 0 as a cosine.

    Raises: `mnist.Error` if the warm-up leaves no step for the decay.
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
    """Makes the Keras optimizer of a namespace with the settings of `Optimizer`.

    Raises: `mnist.Error` for a setting that the optimizer does not have.
    """
    cls = OPTIMIZERS[options.optimizer]
    values = {name: getattr(options, name) for name in ("beta_1", "beta_2", "weight_decay", "clipnorm")}
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if name not in inspect.signature(cls).parameters and name.startswith("beta"):
            raise Error(f"--optimizer={options.optimizer} has no {name}: leave out --{name}.")
    return cls(learning_rate, **values)


def count_on(optimizer):
    """Makes an optimizer that is not built count the updates of an earlier run, too, for Adam's correction of bias.

    Its schedule still begins at 0. The number of these updates is its variable `updates_before`.
    """
    cls = type(optimizer)

    class Continued(cls):
        def build(self, variables):
            is_new = not self.built
            super().build(variables)
            if is_new:
                self._updates_before = self.add_variable((), dtype=self._iterations.dtype, name="updates_before")

        @property
        def iterations(self):
            return super().iterations + self._updates_before

    Continued.__name__, Continued.__qualname__, Continued.__module__ = cls.__name__, cls.__qualname__, cls.__module__
    optimizer.__class__ = Continued
