"""Python and Keras values as plain JSON, so that two moments of a run, or two processes, can be compared by name."""

import collections
import dataclasses
import enum
import functools
import hashlib
import io
import math
import numbers
import os
import random
import sys
import types
from collections.abc import Iterator, Mapping

from mnist import Error
from mnist.checkpoint.variables import variables_in
from mnist.model import describe

import keras
import numpy as np
import tensorflow as tf

# Keys of a Keras description that Keras counts up in a process, or that the graph and the list of layers show as well.
_LEFT_OUT = ("name", "module", "registered_name", "build_config", "compile_config")
_LEFT_OUT += ("layers", "input_layers", "output_layers", "inbound_nodes")
# Libraries whose objects nothing looks into, wherever they are installed.
_CLOSED = ("tensorflow", "keras", "numpy", "absl", "tensorboard", "matplotlib", "PIL")
_GENERATORS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)


class Saved(dict):
    """The description of a Keras object, whose variables checkpoints save."""


class Traced(dict):
    """The description of a tensor of a graph, which a traced method may keep for another one."""


def is_own(value):
    """Returns whether a class, a function or a module is code of the user, such as a file of mnist/research."""
    name = _module_of(value)
    root, file = name.partition(".")[0], getattr(sys.modules.get(name), "__file__", None) or ""
    if root in sys.stdlib_module_names or root in _CLOSED or {"site-packages", "dist-packages"} & {*file.split(os.sep)}:
        return False
    return root != "mnist" or name.startswith("mnist.research")


def _module_of(value):
    return value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None) or "builtins"


def is_described(value):
    """Returns whether a value is an object of Keras, or another one that has a `get_config()`."""
    return hasattr(type(value), "get_config")


def lookup(value, name):
    """Returns an attribute of an object, or None, without the `__getattr__` of its class, which may raise anything."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return None


def plain(value, name="a value", running=False, within=(), held=()):
    """Returns a value as JSON, and what it holds at any depth. Of an object of a library only the class remains.

    Args:
      value: any value.
      name: a string. The name of the value, for messages.
      running: a bool. Whether to leave out learning rates, which a run may change, and to add attributes of layers.
      within: objects that are described already.
      held: `tf.Variable`s that checkpoints hold. While `running`, the values of all others are added.

    Raises: `mnist.Error` for a generator of random numbers or an iterator, whose position nothing shows. Also for an
      optimizer without a get_config(), or with a schedule without one.
    """
    return _Plain(running, within, held).of(value, name)


class _Plain:
    def __init__(self, running, within, held):
        self._held = set(map(id, held))
        self._running, self._seen = running, {id(value): value for value in within}  # keeps objects, and so their ids

    def of(self, value, name):
        if is_described(value):
            return Saved(self._of_keras(value) | self._values_of(value, name))
        if tf.is_symbolic_tensor(value):
            return Traced({"class": type(value).__name__})
        if isinstance(value, tf.Tensor):
            value = value.numpy()
        if isinstance(value, np.ndarray) and value.size > 100 and not value.dtype.hasobject:
            digest = hashlib.sha256(np.ascontiguousarray(value)).hexdigest()
            return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        if isinstance(value, (enum.Enum, os.PathLike, tf.DType, bytes, bytearray, range, type)):
            return str(value)
        if value is None or isinstance(value, (int, str)):
            return value
        if isinstance(value, numbers.Number):  # NaN does not equal itself
            return value if isinstance(value, float) and math.isfinite(value) else str(value)
        if isinstance(value, types.FunctionType):
            bound = self.of([value.__defaults__, value.__kwdefaults__], name)
            return {"class": value.__qualname__, "code": _digest_of_code(value.__code__), "bound": bound}
        if id(value) in self._seen:
            return {"class": type(value).__name__}
        self._seen[id(value)] = value
        try:
            return self._of_parts(value, name)
        finally:
            if isinstance(value, (list, tuple, Mapping)):  # may come twice, but not within itself
                del self._seen[id(value)]

    def _of_parts(self, value, name):
        cls = type(value)
        if isinstance(value, functools.partial):
            value = [value.func, value.args, value.keywords]
        if isinstance(value, np.random.SeedSequence):
            value = value.state
        if isinstance(value, Mapping):
            return {str(self.of(key, name)): self.of(inner, f"{name}[{key!r:.50}]") for key, inner in value.items()}
        if isinstance(value, (list, tuple, collections.deque)):
            return [self.of(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return sorted((self.of(inner, name) for inner in value), key=str)
        has_fields = isinstance(value, types.SimpleNamespace) or dataclasses.is_dataclass(value)
        if has_fields or is_own(cls) or cls is tf.Module:
            found = {key: self.of(inner, f"{name}.{key}") for key, inner in attributes_of(value).items()}
            return found if has_fields else {"class": cls.__name__} | found
        if isinstance(value, _GENERATORS) or (isinstance(value, Iterator) and not isinstance(value, io.IOBase)):
            raise Error(
                f"{name} is a {cls.__name__} of {cls.__module__.partition('.')[0]}, whose position no checkpoint "
                "holds: keep a generator of NumPy in self.state, or draw by (self.seed, epoch)."
            )
        inner = lookup(value, "__self__")  # of a bound method
        found = {"class": cls.__name__} | ({"self": self.of(inner, name)} if inner is not None else {})
        return found | self._values_of(value, name)

    def _values_of(self, value, name):
        """Returns the values of the variables in an object of TensorFlow or Keras that no checkpoint holds."""
        lost = [x for x in variables_in(value) if id(x) not in self._held] if self._running else []
        return {"variables": [self.of(x.numpy(), name) for x in lost]} if lost else {}

    def _of_keras(self, value):
        """Returns what Keras serializes of an object, and for a layer or a model also of each layer in it."""
        if isinstance(value, keras.Layer):
            layers = [self._of_layer(layer) for layer in value._flatten_layers(include_self=False)]
            return ({"layers": layers} if layers else {}) | self._of_layer(value)
        description = describe(value)
        if description is None:
            name = type(value).__name__
            raise Error(f"a resume could not compare the {name}: it, or its learning rate, needs a get_config().")
        return self._anonymous(description)

    def _of_layer(self, layer):
        found = self._anonymous(describe(layer)) or {"class": type(layer).__name__, "trainable": layer.trainable}
        if not self._running:
            return found
        public = {name: value for name, value in vars(layer).items() if name[0] != "_" and name != "built"}
        simple = {name: value for name, value in public.items() if isinstance(value, (bool, int, float, str))}
        return found | simple | {"trainable_variables": [variable.trainable for variable in layer.variables]}

    def _anonymous(self, part):
        """Returns a Keras description without the keys of `_LEFT_OUT` and without the code of lambdas."""
        if isinstance(part, (list, tuple)):
            return [self._anonymous(inner) for inner in part]
        if not isinstance(part, dict):
            return part
        if part.get("class_name", "").endswith("DTypePolicy"):
            return part["config"]["name"]
        kept = [key for key in part if key not in _LEFT_OUT]
        if self._running:
            kept = [key for key in kept if key != "learning_rate" or isinstance(part[key], dict)]  # a variable
        kept = ["class_name"] if part.get("class_name") == "__lambda__" else kept
        return {key.removesuffix("_name"): self._anonymous(part[key]) for key in kept}


def attributes_of(value):
    """Returns what an object keeps by name, without what tf.Module adds, and without a `functools.cached_property`."""
    slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    slots = [name for names in slots for name in ([names] if isinstance(names, str) else names) if hasattr(value, name)]
    found = {name: getattr(value, name) for name in slots if not name.startswith("__")} | getattr(value, "__dict__", {})
    memos = {name for name in found if isinstance(getattr(type(value), name, None), functools.cached_property)}
    return {name: inner for name, inner in found.items() if not name.startswith("_self_") and name not in memos}


def _digest_of_code(code):
    """Returns a digest of what a function does, wherever its source is."""

    def text(constant):
        if isinstance(constant, types.CodeType):
            return _digest_of_code(constant)
        return repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)

    return hashlib.sha256(repr((code.co_code, *map(text, code.co_consts), code.co_names)).encode()).hexdigest()


def is_object(value):
    """Returns whether `plain` left nothing but classes. It does for a tensor of a graph and a list of variables."""
    if isinstance(value, dict):
        return isinstance(value, Saved) or set(value) <= {"class"} or all(map(is_object, value.values()))
    return isinstance(value, list) and all(map(is_object, value))


def is_traced(value):
    """Returns whether a result of `plain` holds nothing but classes, and a tensor of a graph among them."""
    if isinstance(value, (dict, list)) and not isinstance(value, (Saved, Traced)):
        inner = value.values() if isinstance(value, dict) else value
        return is_object(value) and any(map(is_traced, inner))
    return isinstance(value, Traced)


def differences_in(old, new, name):
    """Compares two results of `plain`. Returns: a list of names and pairs of values, `(name, old, new)`."""
    if old == new:
        return []
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, one in enumerate(old) for d in differences_in(one, new[i], f"{name}[{i}]")]
    if isinstance(old, dict) and isinstance(new, dict) and "sha256" not in {**old, **new}:
        names = {key: name if key == "config" else f"{name}.{key}".lstrip(".") for key in {**new, **old}}
        return [d for key, full in names.items() for d in differences_in(old.get(key), new.get(key), full)]
    if name.endswith(".code"):
        return [(f"the code of {name.removesuffix('.code')}", f"{old!s:.7}", f"{new!s:.7}")]
    return [(name, old, new)]


def show(value):
    """Returns a value of a difference for a message. An object is shown by its class."""
    if isinstance(value, float) and float(np.float32(value)) == value:
        return str(np.float32(value))  # as it was typed
    if isinstance(value, dict) and "sha256" in value:
        return f"{value.get('dtype')} {value.get('shape')} with SHA-256 {value['sha256']:.7}"
    if isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        return ", ".join(show(inner) for inner in value)
    return f"{value['class'] if isinstance(value, dict) and 'class' in value else value!s:.200}"
