"""What the numbers of a run depend on: a resume with anything else is refused."""

import json
import os

from mnist.settings import settings_of

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
    """Settings, and public attributes that are numbers or strings, or collections of them."""
    found = {name: getattr(step, name) for name, setting in settings_of(type(step)).items() if not setting.may_change}
    for name, value in vars(step).items():
        leaves = tf.nest.flatten(value)
        plain = all(isinstance(leaf, (bool, int, float, str)) for leaf in leaves)
        if leaves and plain and not name.startswith("_") and name not in settings_of(type(step)):
            found[name] = leaves if tf.nest.is_nested(value) else leaves[0]
    return found


def _describe_data(dataset):
    counts = [len(dataset.train.labels), len(dataset.validation.labels), len(dataset.test.labels)]
    return {"name": dataset.name, "data_dir": dataset.data_dir, "images": counts, "sha256": dataset.digest()}


def fingerprint_of(step, dataset, plan, settings=None):
    """All that the numbers of a run depend on, as plain JSON; `settings`: a dict of more."""
    fingerprint = {
        "dataset": _describe_data(dataset),
        **(settings or {}),
        **{name: getattr(plan, name) for name, setting in settings_of(type(plan)).items() if not setting.may_change},
        **_hyperparameters(step),  # the seed among them
        "intra_op_threads": num_threads(),
        "precision": step.model.dtype_policy.name,
        "step": type(step).__name__,
    }
    for name, value in vars(step).items():
        if isinstance(value, keras.optimizers.Optimizer):
            config = keras.saving.serialize_keras_object(value)["config"]
            del config["name"]  # Keras counts up its optimizers: adam, adam_1, ...
            fingerprint[name] = {"class": type(value).__name__, **config}
    return json.loads(json.dumps(fingerprint))


def differences(old, new):
    """What differs between two fingerprints, in words: a list of strings."""
    if not isinstance(old["dataset"], dict):
        return ["it was written by an older version"]
    if old["dataset"]["sha256"] == new["dataset"]["sha256"]:  # the same data from another folder is the same
        old = {**old, "dataset": new["dataset"]}
    return _differences(old, new, "")


def _differences(old, new, name):
    if name == "dataset" and old != new:
        return [f"the data was {_name_data(old)}, is {_name_data(new)}" + " of other content" * _looks_equal(old, new)]
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*new, *old])
        prefix = f"{name}." if name else ""
        return [d for key in keys for d in _differences(old.get(key), new.get(key), prefix + key)]
    return [] if old == new else [f"{name} was {_name_value(old)}, is {_name_value(new)}"]


def _name_value(value):
    """A value as text; what Keras serialized, a schedule for one, by its class alone."""
    return value["class_name"] if isinstance(value, dict) and "class_name" in value else value


def _name_data(data):
    train, validation, test = data["images"]
    place = f" in {data['data_dir']}" if data["data_dir"] else ""
    return f"{data['name']}{place} ({train:,} training, {validation:,} validation and {test:,} test images)"


def _looks_equal(old, new):
    return _name_data(old) == _name_data(new)
