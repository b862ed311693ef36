"""What the numbers of a run depend on: a resume with anything else is refused."""

import json
import os

import keras
import tensorflow as tf


def num_cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def num_threads():
    """Threads that share one operation, as TensorFlow counts them; the last bits of a result depend on it."""
    variable = os.environ.get("TF_NUM_INTRAOP_THREADS", "")
    asked = tf.config.threading.get_intra_op_parallelism_threads()
    return asked or (int(variable) if variable.isdecimal() else 0) or num_cores()


def _hyperparameters(step):
    """Public attributes that are numbers or strings, or collections of them."""
    found = {}
    for name, value in vars(step).items():
        leaves = tf.nest.flatten(value)
        plain = all(isinstance(leaf, (bool, int, float, str)) for leaf in leaves)
        if leaves and plain and not name.startswith("_"):
            found[name] = leaves if tf.nest.is_nested(value) else leaves[0]
    return found


def fingerprint_of(step, dataset, batch_size, jit_compile, settings):
    """All that the numbers of a run depend on, as plain JSON."""
    fingerprint = {
        **(settings or {}),
        **_hyperparameters(step),  # the seed among them
        "batch_size": batch_size,
        "dataset": dataset.digest(),
        "intra_op_threads": num_threads(),
        "jit_compile": jit_compile,
        "precision": step.model.dtype_policy.name,
        "step": type(step).__name__,
    }
    for name, value in vars(step).items():
        if isinstance(value, keras.optimizers.Optimizer):
            config = keras.saving.serialize_keras_object(value)["config"]
            del config["name"]  # Keras counts up its optimizers: adam, adam_1, ...
            fingerprint[name] = {"class": type(value).__name__, **config}
    return json.loads(json.dumps(fingerprint))


def differences(old, new, name=""):
    """Names what differs between two nested dicts, one string each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*new, *old])
        prefix = f"{name}." if name else ""
        return [d for key in keys for d in differences(old.get(key), new.get(key), prefix + key)]
    return [] if old == new else [f"{name} was {old}, is {new}"]
