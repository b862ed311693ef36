"""The variables and layers in the attributes of a step, and their names in checkpoints."""

import functools
import zlib
from collections.abc import Mapping

import keras
import tensorflow as tf


@tf.autograph.experimental.do_not_convert  # AutoGraph would search it for tensors, which takes long
def variables_of(step):
    """Returns all variables in a step: its own, and the variables of its models, layers, metrics and optimizers.

    It finds them in lists, tuples and dicts at any depth. Each is named by its attribute and position, because the
    paths that Keras gives count up with every model of a process.

    Returns: a dict from names such as `model/3` to `tf.Variable`s.
    """
    return {
        f"{attribute}/{i}": variable
        for attribute, value in _attributes(step)
        for i, variable in enumerate(variables_in(value, {id(step)}))
    }


def layers_of(step):
    """Returns the Keras layers and models in the attributes of a step, also in lists, tuples and dicts."""
    return [part for _, value in _attributes(step) for part in _leaves(value) if isinstance(part, keras.Layer)]


def _attributes(module):
    """Returns names and values without the attributes that tf.Module adds."""
    return [item for item in vars(module).items() if not item[0].startswith("_self_")]


def _leaves(value):
    """Yields what collections hold at any depth, in the order of the keys of a dict if these have an order."""
    if isinstance(value, Mapping):
        try:
            items = [value[key] for key in sorted(value)]
        except TypeError:
            items = [part for item in value.items() for part in item]  # keys may be layers
    elif isinstance(value, (list, tuple)):
        items = value
    else:
        yield value
        return
    for item in items:
        yield from _leaves(item)


def variables_in(value, modules=frozenset()):
    """Yields the `tf.Variable`s of a value inside modules whose ids are `modules`."""
    for part in _leaves(value):
        if isinstance(part, tf.Variable):
            yield part
        elif isinstance(part, keras.Variable):
            yield part.value
        elif isinstance(part, (tf.random.Generator, keras.random.SeedGenerator)):
            yield from variables_in(part.state, modules)
        elif isinstance(part, (keras.Layer, keras.Metric, keras.optimizers.Optimizer)):
            yield from variables_in([part.variables, getattr(part, "metrics_variables", [])], modules)
        elif isinstance(part, tf.Module) and id(part) not in modules:
            values = [inner for _, inner in _attributes(part)]
            yield from variables_in(values, modules | {id(part)})


def digest(variables):
    """Returns a CRC-32 of the values of a dict of `tf.Variable`s."""
    return functools.reduce(lambda crc, v: zlib.crc32(v.numpy().tobytes(), crc), variables.values(), 0)


def variables_of_eval_model(step):
    """Returns the variables of the model that a step evaluates, a dict with names such as `eval_model/3`."""
    return {f"eval_model/{i}": v.value for i, v in enumerate(step.eval_model.variables)}
