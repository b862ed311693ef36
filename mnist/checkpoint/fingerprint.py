"""What the numbers of a run depend on: a resume with anything else is refused."""

import base64
import collections
import dataclasses
import enum
import functools
import hashlib
import marshal
import math
import numbers
import os
import random
import types
from collections.abc import Mapping

from mnist import Error
from mnist.machine import num_threads
from mnist.model import describe
from mnist.settings import settings_of

import keras
import numpy as np
import tensorflow as tf

# Variables of the environment that choose other kernels or other arithmetic, by their beginnings.
_ENVIRONMENT = ("TF_ENABLE_ONEDNN_OPTS", "TF_XLA_FLAGS", "XLA_FLAGS", "TF_DETERMINISTIC_OPS", "ONEDNN_", "DNNL_")
_QUIET = ("_VERBOSE", "_JIT_DUMP", "_JIT_PROFILE", "_PRIMITIVE_CACHE_CAPACITY")


def _environment():
    """What else changes the bits: versions, the environment, and what a script sets for its whole process."""
    names = sorted(name for name in os.environ if name.startswith(_ENVIRONMENT) and not name.endswith(_QUIET))
    found = {name: os.environ[name] for name in names}
    if found.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() in ("1", "true"):
        found.pop("TF_ENABLE_ONEDNN_OPTS", None)  # on unless they are switched off
    options = tf.config.optimizer.get_experimental_options()
    options.pop("scoped_allocator_optimization", None)  # of collectives, set where many processes share a run
    return found | {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "epsilon": keras.config.epsilon(),
        "xla": tf.config.optimizer.get_jit(),
        "eager": tf.config.functions_run_eagerly(),
        "graph_optimizer": options,
    }


def _plain(value):
    """A value as JSON that two runs can be compared by: of what is neither plain nor Keras', only the class."""
    if isinstance(value, (keras.Variable, tf.Variable)):  # its value changes, and is saved
        return {"class": "Variable", "shape": list(value.shape)}
    if hasattr(value, "get_config"):
        return _describe_object(value)
    if isinstance(value, tf.Tensor):
        return _plain(value.numpy()) if hasattr(value, "numpy") else {"class": "Tensor"}
    if isinstance(value, np.ndarray) and value.size > 100:
        digest = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # NaN equals nothing, not even itself
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, (enum.Enum, os.PathLike, tf.DType, bytes, bytearray, numbers.Number, range, type)):
        return str(value)
    if isinstance(value, types.FunctionType):
        bound = _plain([value.__defaults__, value.__kwdefaults__])
        return {"class": value.__qualname__, "code": _describe_code(value.__code__), "bound": bound}
    if isinstance(value, functools.partial):
        return _plain([value.func, value.args, value.keywords])
    if isinstance(value, types.SimpleNamespace):
        return _plain(vars(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value), key=str)
    return {"class": type(value).__name__}


def _is_object(plain):
    """Whether nothing in what `_plain` returned can be compared but classes."""
    if isinstance(plain, dict):
        return set(plain) <= {"class", "shape"} or all(map(_is_object, plain.values()))
    return isinstance(plain, list) and all(map(_is_object, plain))


def attributes(step):
    """Settings and public attributes that are plain, or collections of such: a dict from names to plain JSON."""
    keras_own = {name for name, value in vars(step).items() if hasattr(value, "get_config")}
    return {name: plain for name, plain in _hyperparameters(step).items() if name not in keras_own}


def _hyperparameters(step):
    """Settings, and public attributes that are plain, Keras', or collections of these."""
    settings = settings_of(type(step))
    found = {name: getattr(step, name) for name, setting in settings.items() if not setting.may_change}
    for name, value in vars(step).items():
        if name not in settings and (not name.startswith("_") or hasattr(value, "get_config")):
            found |= {name: value}
    found = {name: _plain(value) for name, value in found.items()}
    return {name: plain for name, plain in found.items() if not _is_object(plain)}


def _describe_object(value):
    """What Keras tells of an object and of all layers in it, but for names that it counts up, adam_1 or dense_3.

    Raises: `mnist.Error` for an optimizer that has no get_config() or whose schedule has none.
    """
    description = describe(value)
    if description is None and not isinstance(value, keras.Layer):
        name = type(value).__name__
        raise Error(f"a resume could not compare the {name}: it, or its learning rate, needs a get_config().")
    # A subclass of keras.Model may tell nothing of its layers.
    if isinstance(value, keras.Layer) and "layers" not in (description or {}).get("config", {}):
        layers = [describe(layer) or layer for layer in value._flatten_layers(include_self=False)]
        described = [layer if isinstance(layer, dict) else _describe_silent(layer) for layer in layers]
        description = (description or _describe_silent(value)) | {"layers": described}
    return _anonymous(description, {})


def _describe_silent(layer):
    return {"class_name": type(layer).__name__, "dtype": layer.dtype_policy.name, "trainable": layer.trainable}


def _anonymous(part, names):
    """A description with each name replaced by its position among all, and without the modules of classes."""
    if isinstance(part, dict):
        if part.get("class_name", "").endswith("DTypePolicy"):
            return part["config"]["name"]
        if part.get("class_name") == "__lambda__":
            code, *bound = part["config"].get("value") or part["config"].values()  # of optimizers, of layers
            code = marshal.loads(base64.b64decode(code))
            return {"class": "lambda", "code": _describe_code(code), "bound": _anonymous(bound, names)}
        if isinstance(name := part.get("name"), str):
            names.setdefault(name, f"#{len(names)}")
        left_out = ("module", "registered_name", "build_config", "compile_config")
        items = [(key.removesuffix("_name"), value) for key, value in part.items() if key not in left_out]
        return {key: names.get(value, value) if key == "name" else _anonymous(value, names) for key, value in items}
    if isinstance(part, (list, tuple)):
        if [type(inner) for inner in part] == [str, int, int]:  # which layer an input comes from
            return [names.get(part[0], part[0]), *part[1:]]
        return [_anonymous(inner, names) for inner in part]
    return part


def _describe_code(code):
    """What a function does, but for where it is written."""

    def plain(constant):
        if isinstance(constant, types.CodeType):
            return _describe_code(constant)
        return repr(sorted(constant, key=repr)) if isinstance(constant, frozenset) else repr(constant)

    return hashlib.sha256(repr((code.co_code, *map(plain, code.co_consts), code.co_names)).encode()).hexdigest()


def _describe_data(dataset):
    counts = [len(dataset.train.labels), len(dataset.validation.labels), len(dataset.test.labels)]
    return {"name": dataset.name, "data_dir": dataset.data_dir, "images": counts, "sha256": dataset.digest()}


def fingerprint_of(step, dataset, plan, settings=None):
    """All that the numbers of a run depend on, as plain JSON; `settings`: a dict of more."""
    fingerprint = {
        "dataset": _describe_data(dataset),
        **(settings or {}),
        **{name: getattr(plan, name) for name, setting in settings_of(type(plan)).items() if not setting.may_change},
        "intra_op_threads": num_threads(),
        "precision": step.model.dtype_policy.name,
        "step": type(step).__name__,
        "environment": _environment(),
        "epoch_order": [vars(cls)["epoch_order"] for cls in type(step).__mro__[:-1] if "epoch_order" in vars(cls)],
        **_hyperparameters(step),  # the seed, the model and the optimizer among them
    }
    return _plain(fingerprint)


def differences(old, new):
    """What differs between two fingerprints, in words: a list of strings."""
    if not isinstance(old["dataset"], dict):
        return ["it was written by an older version"]
    if old["dataset"]["sha256"] == new["dataset"]["sha256"]:  # the same data from another folder is the same
        old = {**old, "dataset": new["dataset"]}
    # The last order is the base class's own, whose code has the docstring of this version among its constants.
    *orders, base = old.get("epoch_order", [{}])
    if base.get("class") == new["epoch_order"][-1]["class"]:
        old = {**old, "epoch_order": [*orders, new["epoch_order"][-1]]}
    return _differences(old, new, "")


def _differences(old, new, name):
    if name == "dataset" and old != new:
        return [f"the data was {_name_data(old)}, is {_name_data(new)}" + " of other content" * _looks_equal(old, new)]
    if name.rpartition(".")[2] == "code" and old != new:
        return [f"the code of {name.rpartition('.')[0]} has changed"]
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*new, *old])
        prefix = f"{name}." if name else ""
        names = {key: name if key == "config" else prefix + key for key in keys}
        return [d for key in keys for d in _differences(old.get(key), new.get(key), names[key])]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, pair in pairs for d in _differences(*pair, f"{name}[{i}]")]
    return [] if old == new else [f"{name} was {_name_value(old)}, is {_name_value(new)}"]


def _name_value(value):
    """A value as text; what Keras serialized, a schedule for one, by its class alone."""
    if isinstance(value, float) and float(np.float32(value)) == value:
        return str(np.float32(value))  # as it was typed
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return ", ".join(str(_name_value(inner)) for inner in value)
    return value["class"] if isinstance(value, dict) and "class" in value else value


def _name_data(data):
    train, validation, test = data["images"]
    place = f" in {data['data_dir']}" if data["data_dir"] else ""
    return f"{data['name']}{place} ({train:,} training, {validation:,} validation and {test:,} test images)"


def _looks_equal(old, new):
    return _name_data(old) == _name_data(new)


def check_attributes(step):
    """Raises `mnist.Error` for a generator of NumPy or Python in an attribute of a step: no checkpoint holds it."""
    for name, value in vars(step).items():
        if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random)):
            raise Error(
                f"the step's {name} is a {type(value).__name__} of {type(value).__module__.partition('.')[0]}, which "
                "checkpoints would not hold: take a tf.random.Generator, or draw by (self.seed, epoch) alone."
            )


def check_unchanged(before, now):
    """Raises `mnist.Error` for an attribute of a step that has changed since the run began: it is in no checkpoint.

    Args:
      before, now: of `fingerprint.attributes`.
    """
    for name, value in before.items():
        if now.get(name) != value:
            raise Error(
                f"the step's {name} has changed since the run began, and checkpoints would not hold it: make it a "
                "tf.Variable, or begin its name with _ if no number depends on it."
            )
