"""Python and Keras values as plain JSON, so that two processes can compare them."""

import collections
import dataclasses
import enum
import functools
import hashlib
import math
import numbers
import os
import types
from collections.abc import Mapping

from mnist import Error
from mnist.model import describe

import keras
import numpy as np
import tensorflow as tf

# Keys of a Keras description that Keras counts up in a process, or that the graph and the list of layers show as well.
_LEFT_OUT = ("name", "module", "registered_name", "build_config", "compile_config")
_LEFT_OUT += ("layers", "input_layers", "output_layers", "inbound_nodes")


def plain(value):
    """Returns a value as JSON. Of an object without comparable values only the class remains.

    Raises: `mnist.Error` for an optimizer without a get_config(), or with a schedule without one.
    """
    if hasattr(value, "get_config"):
        return _describe_object(value)
    if isinstance(value, tf.Tensor) and hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray) and value.size > 100:
        digest = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (enum.Enum, os.PathLike, tf.DType, bytes, bytearray, range, type)):
        return str(value)
    if isinstance(value, types.SimpleNamespace) or (dataclasses.is_dataclass(value) and hasattr(value, "__dict__")):
        value = vars(value)
    if value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, numbers.Number):  # NaN does not equal itself
        return value if isinstance(value, float) and math.isfinite(value) else str(value)
    if isinstance(value, types.FunctionType):
        bound = plain([value.__defaults__, value.__kwdefaults__])
        return {"class": value.__qualname__, "code": _digest_of_code(value.__code__), "bound": bound}
    if isinstance(value, functools.partial):
        value = [value.func, value.args, value.keywords]
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return [plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value), key=str)
    return {"class": type(value).__name__}


def _digest_of_code(code):
    """Returns a digest of what a function does, wherever its source is."""

    def text(constant):
        if isinstance(constant, types.CodeType):
            return _digest_of_code(constant)
        return repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)

    return hashlib.sha256(repr((code.co_code, *map(text, code.co_consts), code.co_names)).encode()).hexdigest()


def _describe_object(value):
    """Returns what Keras serializes of an object, and for a layer or a model also of each layer in it."""
    if isinstance(value, keras.Layer):
        layers = [_describe_layer(layer) for layer in value._flatten_layers(include_self=False)]
        return _describe_layer(value) | ({"layers": layers} if layers else {})
    description = describe(value)
    if description is None:
        name = type(value).__name__
        raise Error(f"a resume could not compare the {name}: it, or its learning rate, needs a get_config().")
    return _anonymous(description)


def _describe_layer(layer):
    return _anonymous(describe(layer)) or {"class": type(layer).__name__, "trainable": layer.trainable}


def _anonymous(part):
    """Returns a Keras description without the keys of `_LEFT_OUT` and without the code of lambdas."""
    if isinstance(part, (list, tuple)):
        return [_anonymous(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    if part.get("class_name", "").endswith("DTypePolicy"):
        return part["config"]["name"]
    kept = ["class_name"] if part.get("class_name") == "__lambda__" else [key for key in part if key not in _LEFT_OUT]
    return {key.removesuffix("_name"): _anonymous(part[key]) for key in kept}
