"""The watch over a step: refuses by name what a hook keeps, draws or changes, if no checkpoint would hold it."""

import contextlib
import os
import random
import traceback

from mnist import Error
from mnist.checkpoint.comparable import attributes_of, differences_in, is_traced, plain, show
from mnist.checkpoint.reads import own_classes, read_by
from mnist.checkpoint.variables import variables_of
from mnist.settings import READ

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import random_seed  # no public name counts draws without a seed
from tensorflow.python.ops import stateful_random_ops  # the public name would make a generator

_INSTEAD = {
    "in a hook": "np.random.default_rng((self.seed, epoch)), or a generator of NumPy in self.state",
    "while traced": "tf.random.stateless_* with self.random_seed('a name')",
}


class Watch:
    """A comparison of a `TrainStep` with what it was when the run began.

    It compares what the attributes of the step hold at any depth, what its methods read, and the settings of Keras
    objects. Tensors of a graph and values of variables may change. So may `state`, and a `functools.cached_property`.

    Raises: `mnist.Error` for a generator of random numbers or an iterator.
    """

    def __init__(self, step):
        self._step = step
        names = dict.fromkeys(name for cls in own_classes(step) for name in vars(cls))
        self._methods = [name for name in names if name != "__init__"]
        self._variables = variables_of(step)
        self._before = self._look()

    def _look(self):
        kept = {
            f"self.{name}": value for name, value in attributes_of(self._step).items() if name not in ("_state", READ)
        }
        read = read_by(self._step, self._methods).items()
        kept |= {name: x for name, x in read if name[:5] != "self."}
        held = self._variables.values()
        return {name: plain(x, name, running=True, within=[self._step], held=held) for name, x in kept.items()}

    def check(self, when):
        """Raises `mnist.Error` for what has changed since the run began. `when` is a text, such as "in epoch_order"."""
        cls, variables = type(self._step).__name__, variables_of(self._step)
        for name, variable in self._variables.items():
            if variables.get(name) is not variable:
                raise Error(
                    f"{cls}: self.{name.partition('/')[0]} lost a tf.Variable {when}, which the graph still uses: "
                    "call assign() on the variable, and do not replace it."
                )
        held = set(map(id, self._variables.values()))
        for name, variable in variables.items():
            if id(variable) not in held:
                raise Error(
                    f"{cls}: self.{name.partition('/')[0]} got a tf.Variable {when}, which no checkpoint holds: "
                    "make it before the run."
                )
        for name, was, now in differences_in(self._before, self._look(), ""):
            if not is_traced(now):
                change = f"{cls}: {name} changed {when} from {show(was)} to {show(now)}"
                raise Error(
                    f"{change}. No checkpoint holds it, and traced methods keep the first value: use self.state or "
                    "a tf.Variable of the step, or set it before."
                )

    @contextlib.contextmanager
    def tracing(self):
        """Refuses what the traced methods of the step draw or change while it is entered."""
        with self._drawing(f"a traced method of {type(self._step).__name__}", _INSTEAD["while traced"]):
            try:
                yield
            except Error as error:
                # AutoGraph raises a copy of an error, with the places of all calls before its message.
                while "in user code:" in str(error) and isinstance(error.__context__, Error):
                    error = error.__context__
                raise error from None
        self.check("while it was traced")

    @contextlib.contextmanager
    def hook(self, name):
        """Refuses what a method of the step in plain Python draws or changes while it is entered.

        Raises: `mnist.Error` also for a wrong use of arguments.
        """
        self.check("while the run trained")
        subject = f"{name} of {type(self._step).__name__}"
        with self._drawing(subject, _INSTEAD["in a hook"]):
            try:
                yield
            except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
                raise _wrong_use(subject, error) from error
        self.check(f"in {name}")

    @contextlib.contextmanager
    def _drawing(self, subject, instead):
        before, get_seed, draws = _states(), random_seed.get_seed, []

        def count(seed):
            draws.extend([seed] if seed is None else [])
            return get_seed(seed)

        random_seed.get_seed = count
        try:
            yield
        finally:
            random_seed.get_seed = get_seed
        drawn = [name for name, state in _states().items() if state != before[name]] + ["tf.random"] * bool(draws)
        if drawn:
            raise Error(f"{subject} draws from {drawn[0]}, whose state no checkpoint holds: use {instead}.")


def _states():
    """Returns the states of the generators that all code of a process shares, by name."""
    generator = stateful_random_ops.global_generator
    return {
        "random": random.getstate(),
        "np.random": plain(np.random.get_state(legacy=False)),
        "tf.random.get_global_generator()": generator and generator.state.numpy().tolist(),
    }


def _wrong_use(subject, error):
    frames = [
        x
        for x in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in x.filename and os.path.exists(x.filename)
    ]
    place = f"{os.path.basename(frames[-1].filename)}:{frames[-1].lineno}"
    if "read-only" in str(error):
        return Error(f"{subject} writes to an array that the run still needs ({place}): change a copy, as x.copy().")
    text = " ".join(str(error).split())
    return Error(f"{subject} fails with {type(error).__name__} ({place}): {text:.300}")
