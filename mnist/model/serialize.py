"""Descriptions of models as JSON, and models made from them: in another process, or as a copy in this one."""

import contextlib
import copy
import importlib
import inspect
import os
import random
import re
import sys
import types
import warnings

from mnist import Error
from mnist.model.inference import IMAGE_SHAPE, keep_state, scale_images

import keras
import numpy as np
import tensorflow as tf
from absl import flags

_importing = []  # names of the modules that `import_objects` is importing


def being_imported():
    """Returns the name of the module that is imported for its model and must not train, or None."""
    return _importing[-1] if _importing else None


def describe(value):
    """Serializes a Keras model, layer or optimizer. Returns: a dict, or None if a class needs a get_config()."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns that a lambda is unsafe to load, which is refused then
            return keras.saving.serialize_keras_object(value)
    except NotImplementedError:  # Keras raises it for a class with arguments of its own and no get_config()
        return None


def describe_model(model):
    """Serializes a model without its weights, or an optimizer, so that another process can import its classes.

    Returns: a dict for JSON, or None if a class needs a get_config().
    """
    description, objects = describe(model), objects_of(model) if isinstance(model, keras.Layer) else {}
    for part in parts_of(description):
        if part.get("class_name") == "function":  # Keras stores the name of a function without its module
            part["module"] = getattr(objects.get(part["config"]), "__module__", part.get("module"))
        if part.get("module", "") in (None, "__main__"):  # Keras stores None for __main__
            part["module"] = _name_of_main()
    return description


def module_of(cls):
    """Returns the name by which another process imports the module of a class."""
    return _name_of_main() if cls.__module__ == "__main__" else cls.__module__


def _name_of_main():
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else os.path.splitext(os.path.basename(sys.argv[0]))[0]


def rebuild(description, weights, answers, name):
    """Makes a model from its description and its weights.

    Args:
      description: dict. The result of `describe_model`.
      weights: list of NumPy arrays. The values of the model's variables.
      answers: float32 `[4, classes]`. The result of `probe`, or None to skip the comparison.
      name: str. The model's name in messages.

    Raises: `mnist.Error` if Keras cannot make the model, or if its logits differ from `answers`.
    """
    try:
        return _make_same(description, import_objects(description), weights, answers)
    except ValueError as reason:
        raise Error(f"{name} cannot be rebuilt: {reason}") from None


def make_object(description):
    """Makes an object that is not a model, such as an optimizer, from the result of `describe_model`.

    Raises: any exception of Keras or of the class.
    """
    return keras.saving.deserialize_keras_object(copy.deepcopy(description), import_objects(description))


def copy_model(model):
    """Makes a model of the same configuration and values, with its own variables.

    Raises: `mnist.Error` if a model made from get_config() differs.
    """
    description, objects, answers = describe(model), objects_of(model), probe(model)
    try:
        # The lambdas of this model are already in this process, so that they are safe.
        return _make_same(description, objects, model.variables, answers, safe_mode=False)
    except ValueError as reason:
        raise Error(f"{type(model).__name__} cannot be copied, as averaging needs it: {reason}") from None


def _make_same(description, objects, values, answers, safe_mode=True):
    """Makes a model and assigns values to its variables.

    Args:
      objects: dict. The classes and functions that are not Keras' own, by name.
      safe_mode: bool. Whether to refuse code in the description, such as a lambda.

    Raises: ValueError with the reason, a sentence.
    """
    if description is None:
        raise ValueError("its class has no get_config().")
    description = copy.deepcopy(description)
    for part in parts_of(description):
        cls = objects.get(part.get("class_name"))
        if isinstance(cls, type) and isinstance(part.get("config"), dict):
            # Keras stores these three even if __init__() does not accept them.
            parameters = inspect.signature(cls.__init__).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                for name in {"name", "trainable", "dtype"} - {p.name for p in parameters}:
                    part["config"].pop(name, None)
    state = random.getstate()  # Keras draws initial weights, which must not change the next draws of the run
    try:
        model = keras.saving.deserialize_keras_object(description, objects, safe_mode)
    except (TypeError, ValueError) as error:  # for a class that Keras does not find, or for code
        # Keras wraps the reason in other errors and in whole configurations.
        reason = re.split(r"Exception encountered: |deserialization: ", " ".join(str(error).split()))[-1]
        raise ValueError(re.split(r"(?<=\.) ", reason)[0][:200]) from None
    finally:
        random.setstate(state)
    if [tuple(value.shape) for value in values] != [tuple(variable.shape) for variable in model.variables]:
        raise ValueError("a model made from its get_config() has other variables.")
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    if answers is not None and not is_like(model, answers):
        raise ValueError("its get_config(), or code that has changed, makes a model with other answers.")
    return model


def import_objects(description):
    """Imports the classes and functions of a description that are not Keras' own. Returns: a dict by name.

    Raises: `mnist.Error` that names a module whose import failed.
    """
    objects = {}
    with _flags_restored():
        for part in parts_of(description):
            module, name = part.get("module"), part.get("class_name")
            if not name or not module or module.partition(".")[0] in ("keras", "builtins"):
                continue
            name = part["config"] if name == "function" else name
            _importing.append(module)
            try:
                source = sys.modules["__main__"] if module == _name_of_main() else importlib.import_module(module)
                objects[name] = getattr(source, name, None)
            except ImportError as error:
                reason = f"{name} is in {module}, which cannot be imported ({error})"
                raise Error(f"{reason}: start in its folder.") from None
            except (Exception, SystemExit) as error:  # the module runs more than definitions
                event = "ended the program" if isinstance(error, SystemExit) else f"raised {type(error).__name__}"
                raise Error(
                    f"{name} is in {module}, whose import {event} ({error}): "
                    'put what it starts under `if __name__ == "__main__":`.'
                ) from None
            finally:
                _importing.pop()
    return {name: value for name, value in objects.items() if value}


@contextlib.contextmanager
def _flags_restored():
    """Lets modules that are imported define flags, but keeps the flags that this command had before."""
    own = {name: flags.FLAGS[name] for name in flags.FLAGS}
    overridable = {name: flag.allow_override for name, flag in own.items()}
    for flag in own.values():
        flag.allow_override = True
    yield
    for name in flags.FLAGS:
        if flags.FLAGS[name] is not own.get(name):
            flags.FLAGS[name].imported = flags.FLAGS[name].allow_override = True
    for name, flag in own.items():
        flags.FLAGS[name] = flag
    for name, flag in own.items():
        flag.allow_override = overridable[name]


def probe(model):
    """Returns a model's logits, float32 `[4, classes]`, for four fixed images. They identify the model."""
    images = np.random.default_rng(0).integers(0, 256, [4, *IMAGE_SHAPE], np.uint8)
    with keep_state(model):
        return tf.cast(model(scale_images(images), training=False), tf.float32).numpy()


def is_like(model, answers):
    """Returns whether `probe(model)` equals `answers` up to the round-off of another machine."""
    coarse = any(layer.compute_dtype in ("bfloat16", "float16") for layer in model._flatten_layers())
    found, bound = probe(model), (0.03 if coarse else 1e-3) * np.abs(answers).max()
    return found.shape == answers.shape and np.allclose(found, answers, rtol=0, atol=bound, equal_nan=True)


def parts_of(description):
    """Yields all dicts at any depth of a description: the model, its layers, their values."""
    if isinstance(description, dict):
        yield description
        description = list(description.values())
    if isinstance(description, (list, tuple)):
        for part in description:
            yield from parts_of(part)


def objects_of(model):
    """Returns the classes of a model and its layers, and their functions, by name, except for Keras' own."""
    layers = list(model._flatten_layers())
    found = [type(layer) for layer in layers]
    found += [value for layer in layers for value in vars(layer).values() if isinstance(value, types.FunctionType)]
    return {value.__name__: value for value in found if value.__module__.partition(".")[0] != "keras"}
