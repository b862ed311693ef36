"""All that must survive a crash, and nothing else: variables, the step, the epoch so far.

A checkpoint is one TensorFlow bundle, `ckpt-<step>.index` and `ckpt-<step>.data-00000-of-00001`,
which `tf.train.load_checkpoint` reads. It holds every variable of the step by name, the variables of
the evaluated model, and one string of JSON, `metadata`.
"""

import contextlib
import glob
import importlib
import json
import os
import re
import sys

from mnist import Error
from mnist.files import sync, write_atomically, write_errors

import keras
import numpy as np
import tensorflow as tf
from absl import flags, logging

_DATA = ".data-00000-of-00001"
_INDEX = ".index"


class NotFinite(Error):
    """A loss or a weight is NaN or infinite."""


def variables_of(step):
    """All variables that a step holds: its own, and those of its models, layers, metrics and optimizers.

    Those in lists, tuples and dicts count, however deep. Named by attribute and position: Keras' own paths
    count up with every model of a process.

    Returns: a dict from names as `model/3` to `tf.Variable`s.
    """
    return {
        f"{attribute}/{i}": variable
        for attribute, value in _attributes(step)
        for i, variable in enumerate(_variables_in(value, {id(step)}))
    }


def _attributes(module):
    """Names and values but for what tf.Module notes of them itself."""
    return [item for item in vars(module).items() if not item[0].startswith("_self_")]


def _variables_in(value, modules):
    """The variables of a value; `modules` are ids of those that it is within."""
    for part in tf.nest.flatten(value):
        if isinstance(part, tf.Variable):
            yield part
        elif isinstance(part, keras.Variable):
            yield part.value
        elif isinstance(part, (tf.random.Generator, keras.random.SeedGenerator)):
            yield from _variables_in(part.state, modules)
        elif isinstance(part, (keras.Layer, keras.Metric, keras.optimizers.Optimizer)):
            yield from _variables_in([part.variables, getattr(part, "metrics_variables", [])], modules)
        elif isinstance(part, tf.Module) and id(part) not in modules:
            values = [inner for _, inner in _attributes(part)]
            yield from _variables_in(values, modules | {id(part)})


def save(directory, step, metadata, keep):
    """Saves a `TrainStep` with its metadata as `ckpt-<metadata["step"]>`; deletes all but `keep`.

    The files get their names only when they are whole and on disk, the index last.

    Raises: `NotFinite` if a variable is; `mnist.Error` if the disk is full or read-only. Either way
      the checkpoints that were there stay as they are.
    """
    variables = variables_of(step)
    variables.update({f"eval_model/{i}": v.value for i, v in enumerate(step.eval_model.variables)})
    for name, variable in variables.items():
        if variable.dtype.is_floating and not np.isfinite(variable.numpy().astype(np.float64)).all():
            raise NotFinite(f"{name} ({variable.path if hasattr(variable, 'path') else variable.name})")
    path = os.path.join(directory, f"ckpt-{metadata['step']}")
    temporary = os.path.join(directory, "tmp")
    metadata = {**metadata, "model": _describe_model(step.eval_model)}
    with write_errors(f"save {path}"):
        try:
            os.makedirs(directory, exist_ok=True)
            tf.raw_ops.SaveV2(
                prefix=temporary,
                tensor_names=[*variables, "metadata"],
                shape_and_slices=[""] * (len(variables) + 1),
                tensors=[*variables.values(), tf.constant(json.dumps(metadata))],
            )
            for end in (_DATA, _INDEX):
                sync(temporary + end)
            for end in (_DATA, _INDEX):
                os.replace(temporary + end, path + end)
            sync(directory)
        except Exception:
            for leftover in glob.glob(f"{glob.escape(temporary)}*"):
                with contextlib.suppress(OSError):
                    os.remove(leftover)
            raise
        paths = [path for path in _list(directory) if os.path.exists(path + _INDEX)]  # not what was lost or set aside
        for old in paths[keep:]:
            for end in (_INDEX, _DATA):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(old + end)
        # The state file is for tf.train.latest_checkpoint and for telling a lost file from a half-written one.
        names = [os.path.basename(p) for p in paths[:keep]]
        lines = [f'model_checkpoint_path: "{names[0]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in reversed(names)]
        write_atomically(os.path.join(directory, "checkpoint"), "\n".join(lines) + "\n")


def _describe_model(model):
    try:
        description = keras.saving.serialize_keras_object(model)
    except NotImplementedError:  # Keras' answer for a class with arguments of its own and no get_config()
        lack = "%s has no get_config(): it trains and resumes, and cannot be evaluated or exported by other commands."
        logging.log_first_n(logging.WARNING, lack, 1, type(model).__name__)
        return None
    spec = sys.modules["__main__"].__spec__
    script = os.path.splitext(os.path.basename(sys.argv[0]))[0]
    for part in _parts(description):
        if part.get("module", "") in (None, "__main__"):  # Keras has None for __main__; another process needs a name
            part["module"] = spec.name if spec else script
    return description


def _parts(description):
    """All dicts in what Keras serialized: of the model, its layers, whatever they hold."""
    if isinstance(description, dict):
        yield description
        description = list(description.values())
    if isinstance(description, (list, tuple)):
        for part in description:
            yield from _parts(part)


def _list(directory):
    """Paths of all checkpoints without their endings, the newest first, damaged ones included."""
    listed = glob.glob(os.path.join(glob.escape(directory), f"ckpt-*{_INDEX}"))
    names = {path.removesuffix(_INDEX) for path in listed}
    try:
        state = tf.train.get_checkpoint_state(directory)
    except Exception:  # damaged: the files themselves are listed above
        state = None
    if state:  # a file that it lists and that is gone was lost, not half-written
        names.update(state.all_model_checkpoint_paths)
    steps = {name: re.fullmatch(r"ckpt-(\d+)", os.path.basename(name)) for name in names}
    return sorted((name for name in names if steps[name]), key=lambda name: -int(steps[name][1]))


def _read(path):
    """Reads a checkpoint whole, every tensor's checksum verified. Returns: tensors, metadata."""
    reader = tf.train.load_checkpoint(path)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return tensors, json.loads(tensors.pop("metadata"))


def load_newest(directory):
    """Reads the newest checkpoint that is sound; warns of each damaged one that is newer.

    Returns: a dict from names to arrays, and the metadata; None if there is no checkpoint at all.
    Raises: `mnist.Error` if there are checkpoints and none is sound.
    """
    damaged = []
    for path in _list(directory):
        try:
            loaded = _read(path)
        # Whatever the reader raises (DataLossError, NotFoundError, ValueError): it cannot be read.
        except Exception as error:
            logging.warning("%s is damaged: %s", path, " ".join(str(error).split())[:200])
            damaged.append(path)
            continue
        if damaged:
            logging.warning("Going on from %s instead.", path)
        return loaded
    if damaged:
        raise Error(
            f"none of the {len(damaged)} checkpoints in {directory} can be read. "
            "Bring back a copy of one, or start over with another --workdir."
        )
    return None


def set_aside_newer(directory, step_number):
    """Renames damaged checkpoints after `step_number`, so that they neither count nor get lost."""
    for path in _list(directory):
        if int(path.rpartition("-")[2]) > step_number:
            for end in (_INDEX, _DATA):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path + end, os.path.join(directory, "damaged-" + os.path.basename(path) + end))


def assign(step, tensors):
    """Gives a step the values that `load_newest` read. Raises: `mnist.Error` if they do not fit."""
    variables = variables_of(step)
    saved = {name for name in tensors if not name.startswith("eval_model/")}
    different = sorted(saved ^ variables.keys()) or sorted(
        name for name in saved if tensors[name].shape != tuple(variables[name].shape)
    )
    if different:
        raise Error(
            f"the checkpoint is of another step or model: {different[0]} does not fit. "
            "Start with the same code, or with another --workdir."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def _import_classes(description):
    """Imports the modules of a model's classes and functions but for Keras' own. Returns: a dict from their names.

    A module may bring flags of `mnist.train`, which must not take the place of this command's own.
    """
    own = {name: flags.FLAGS[name] for name in flags.FLAGS}
    for flag in own.values():
        flag.allow_override = True
    classes = {}
    for part in _parts(description):
        module, name = part.get("module"), part.get("class_name")
        if not name or not module or module.partition(".")[0] in ("keras", "builtins"):
            continue
        try:
            name = part["config"] if name == "function" else name
            classes[name] = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise Error(
                f"the model's class is in {module}, which cannot be imported ({error}): start in its folder."
            ) from None
    for name, flag in own.items():
        flags.FLAGS[name] = flag
    return {name: value for name, value in classes.items() if value}


def load_model(workdir):
    """Rebuilds the evaluated model of a run from its newest checkpoint.

    Returns: a `keras.Model` and the checkpoint's metadata. Raises: `mnist.Error`.
    """
    if not os.path.isdir(workdir):
        raise Error(f"--workdir={workdir} is not a folder. Train first: python -m mnist.train.")
    loaded = load_newest(os.path.join(workdir, "checkpoints"))
    if loaded is None:
        raise Error(f"--workdir={workdir} holds no checkpoint. Train first: python -m mnist.train.")
    tensors, metadata = loaded
    if metadata["model"] is None:
        raise Error(f"the model of {workdir} cannot be rebuilt: its class needs a get_config().")
    classes = _import_classes(metadata["model"])
    try:
        model = keras.saving.deserialize_keras_object(metadata["model"], custom_objects=classes)
    except (TypeError, ValueError) as error:  # Keras' own for what it does not find and what it holds to be unsafe
        raise Error(f"the model of {workdir} cannot be rebuilt: {' '.join(str(error).split())[:200]}") from None
    saved = [tensors[f"eval_model/{i}"] for i in range(sum(name.startswith("eval_model/") for name in tensors))]
    if [array.shape for array in saved] != [tuple(variable.shape) for variable in model.variables]:
        raise Error(f"the model of {workdir} cannot be rebuilt: what its get_config() tells has other variables.")
    for variable, array in zip(model.variables, saved, strict=True):
        variable.assign(array)
    return model, metadata
