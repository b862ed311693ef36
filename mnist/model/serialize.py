"""A model that is made again from what Keras tells of it: in another process, or as a copy that is averaged."""

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
from mnist.model.cnn import IMAGE_SHAPE, keep_state, scale_images

import keras
import numpy as np
import tensorflow as tf
from absl import flags

_importing = []  # modules of models that are being imported


def being_imported():
    """The name of the script that is imported for the model in it, and must not train; None outside of that."""
    return _importing[-1] if _importing else None


def describe(value):
    """What Keras tells of a model, a layer, an optimizer: a dict to make its like from; None if it cannot tell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a lambda would be unsafe to read back: that is refused then
            return keras.saving.serialize_keras_object(value)
    except NotImplementedError:  # what Keras raises for a class with arguments of its own and no get_config()
        return None


def describe_model(model):
    """All that another process needs to rebuild a model but its weights, as JSON; None if Keras cannot tell."""
    description, objects = describe(model), objects_of(model)
    for part in parts_of(description):
        if part.get("class_name") == "function":  # of which Keras tells the name alone
            part["module"] = getattr(objects.get(part["config"]), "__module__", part.get("module"))
        if part.get("module", "") in (None, "__main__"):  # Keras has None for __main__; another process needs a name
            part["module"] = _name_of_main()
    return description


def module_of(cls):
    """The name by which another process imports the module of a class."""
    return _name_of_main() if cls.__module__ == "__main__" else cls.__module__


def _name_of_main():
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else os.path.splitext(os.path.basename(sys.argv[0]))[0]


def rebuild(description, weights, answers, name):
    """Makes a model again.

    Args:
      description: of `describe_model`.
      weights: its variables' values, NumPy arrays.
      answers: of `probe`; None if they are not known.
      name: what a message calls it.

    Raises: `mnist.Error` if that cannot be done, or if it answers otherwise.
    """
    if description is None:
        raise Error(f"{name} cannot be rebuilt: its class has no get_config().")
    objects = import_objects(description)
    try:
        model = make_again(description, objects)
    except (TypeError, ValueError) as error:  # Keras' own for what it does not find and what it holds to be unsafe
        raise Error(f"{name} cannot be rebuilt: {shorten(error)}") from None
    if [array.shape for array in weights] != [tuple(variable.shape) for variable in model.variables]:
        raise Error(f"{name} cannot be rebuilt: what its get_config() tells has other variables.")
    for variable, array in zip(model.variables, weights, strict=True):
        variable.assign(array)
    if answers is not None and not is_like(model, answers):
        raise Error(
            f"{name} cannot be rebuilt: it answers otherwise. Its get_config() or its code is not that of the run."
        )
    return model


def import_objects(description):
    """Imports the modules of classes and functions, as of `describe`, but Keras' own. Returns: a dict from their names.

    A module may define flags, which must not take the place of this command's own.
    """
    own = {name: flags.FLAGS[name] for name in flags.FLAGS}
    overridable = {name: flag.allow_override for name, flag in own.items()}
    for flag in own.values():
        flag.allow_override = True
    objects = {}
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
            raise Error(f"{name} is in {module}, which cannot be imported ({error}): start in its folder.") from None
        except Exception as error:  # of a script that does more than to define
            raise Error(
                f"{name} is in {module}, whose import raised {type(error).__name__} ({error}): "
                'put what it starts under `if __name__ == "__main__":`.'
            ) from None
        except SystemExit as end:
            raise Error(
                f"{name} is in {module}, which ended the program when it was imported ({end}): "
                'put what it starts under `if __name__ == "__main__":`.'
            ) from None
        finally:
            _importing.pop()
    for name in flags.FLAGS:
        if flags.FLAGS[name] is not own.get(name):
            flags.FLAGS[name].imported = flags.FLAGS[name].allow_override = True
    for name, flag in own.items():
        flags.FLAGS[name] = flag
    for name, flag in own.items():
        flag.allow_override = overridable[name]
    return {name: value for name, value in objects.items() if value}


def probe(model):
    """Logits, float32 `[4, classes]`, of the same few images: a model that is made again is known by them."""
    images = np.random.default_rng(0).integers(0, 256, [4, *IMAGE_SHAPE], np.uint8)
    with keep_state(model):
        return tf.cast(model(scale_images(images), training=False), tf.float32).numpy()


def is_like(model, answers):
    """Whether a model answers the probe so, but for the round-off of another machine."""
    coarse = any(layer.compute_dtype in ("bfloat16", "float16") for layer in model._flatten_layers())
    found, bound = probe(model), (0.03 if coarse else 1e-3) * np.abs(answers).max()
    return found.shape == answers.shape and np.allclose(found, answers, rtol=0, atol=bound, equal_nan=True)


def make_again(description, objects, safe_mode=True):
    """Makes a model as `describe` told of one; its variables have new values.

    Args:
      objects: a dict from names to the classes and functions in it that are not Keras'.
      safe_mode: whether to refuse code in the description, as of a lambda.

    Raises: TypeError or ValueError for what Keras does not find, or holds to be unsafe.
    """
    description = copy.deepcopy(description)
    for part in parts_of(description):
        cls = objects.get(part.get("class_name"))
        if isinstance(cls, type) and isinstance(part.get("config"), dict):
            # Keras tells of these whether an __init__() takes them or not.
            parameters = inspect.signature(cls.__init__).parameters.values()
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                for name in {"name", "trainable", "dtype"} - {p.name for p in parameters}:
                    part["config"].pop(name, None)
    state = random.getstate()  # initial values are drawn, and thrown away
    try:
        return keras.saving.deserialize_keras_object(description, objects, safe_mode)
    finally:
        random.setstate(state)


def parts_of(description):
    """All dicts in what Keras serialized: of the model, its layers, whatever they hold."""
    if isinstance(description, dict):
        yield description
        description = list(description.values())
    if isinstance(description, (list, tuple)):
        for part in description:
            yield from parts_of(part)


def objects_of(model):
    """Classes of a model and its layers, and functions that these hold, but for Keras' own: a dict from names."""
    layers = list(model._flatten_layers())
    found = [type(layer) for layer in layers]
    found += [value for layer in layers for value in vars(layer).values() if isinstance(value, types.FunctionType)]
    return {value.__name__: value for value in found if value.__module__.partition(".")[0] != "keras"}


def copy_model(model):
    """A model of the same configuration with the same values, and variables of its own.

    Raises: `mnist.Error` if what get_config() tells makes another.
    """
    name, description = type(model).__name__, describe(model)
    if description is None:
        raise Error(f"{name} cannot be copied, as averaging needs it: write its get_config().")
    try:
        copied = make_again(description, objects_of(model), safe_mode=False)  # it is of this process
        for variable, value in zip(copied.variables, model.variables, strict=True):
            variable.assign(value)
    except (TypeError, ValueError) as error:
        raise Error(f"{name} cannot be copied, as averaging needs it: {shorten(error)}") from None
    if not is_like(copied, probe(model)):
        raise Error(
            f"{name} cannot be copied, as averaging needs it: made from its get_config(), it answers otherwise."
        )
    return copied


def shorten(error):
    """The reason in what Keras says, which may be an error around an error and whole configurations."""
    reason = re.split(r"Exception encountered: |deserialization: ", " ".join(str(error).split()))[-1]
    return re.split(r"(?<=\.) ", reason)[0][:200]
