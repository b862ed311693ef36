"""All that must survive a crash, and nothing else: variables, the step, the epoch so far.

A checkpoint is one TensorFlow bundle, `ckpt-<step>.index` and `ckpt-<step>.data-00000-of-00001`,
which `tf.train.load_checkpoint` reads. It holds every variable of the step by name, the variables of
the evaluated model, what the run adds (`run/...`), and one string of JSON, `metadata`.
"""

import contextlib
import functools
import glob
import json
import os
import re
import zlib
from collections.abc import Mapping

from mnist import Error
from mnist.files import sync, without_pattern, write_atomically, write_errors

import keras
import numpy as np
import tensorflow as tf
from absl import logging

_DATA = ".data-00000-of-00001"
_INDEX = ".index"


class NotFinite(Error):
    """A loss or a weight is NaN or infinite."""


@tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes time
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


def _leaves(value):
    """What collections hold, however deep; dicts by their sorted keys where those have an order."""
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


def _variables_in(value, modules):
    """The variables of a value; `modules` are ids of those that it is within."""
    for part in _leaves(value):
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


def digest(variables):
    """A CRC-32 of the values of a dict of `tf.Variable`s."""
    return functools.reduce(lambda crc, v: zlib.crc32(v.numpy().tobytes(), crc), variables.values(), 0)


def variables_of_eval_model(step):
    """The variables of the model that a step evaluates, a dict with names as `eval_model/3`."""
    return {f"eval_model/{i}": v.value for i, v in enumerate(step.eval_model.variables)}


def save(directory, variables, metadata, keep, extra=None):
    """Saves variables with metadata as `ckpt-<metadata["step"]>`; deletes all but `keep`.

    The files get their names only when they are whole and on disk, the index last.

    Args:
      variables: a dict of `tf.Variable`s, those of `variables_of` and of `variables_of_eval_model`.
      metadata: a dict of plain JSON with the step's number, `step`.
      keep: how many checkpoints stay, the newest.
      extra: a dict of further tensors, which `assign` passes over; saved as `run/<name>`.

    Raises: `NotFinite` if a variable is; `mnist.Error` if the disk is full or read-only. Either way
      the checkpoints that were there stay as they are.
    """
    for name, variable in variables.items():
        if variable.dtype.is_floating and not np.isfinite(variable.numpy().astype(np.float64)).all():
            raise NotFinite(f"{name} ({variable.path if hasattr(variable, 'path') else variable.name})")
    path = os.path.join(directory, f"ckpt-{metadata['step']}")
    temporary = os.path.join(directory, "tmp")
    tensors = variables | {f"run/{name}": tensor for name, tensor in (extra or {}).items()}
    with write_errors(f"save {path}"):
        try:
            os.makedirs(directory, exist_ok=True)
            tf.raw_ops.SaveV2(
                prefix=temporary,
                tensor_names=[*tensors, "metadata"],
                shape_and_slices=[""] * (len(tensors) + 1),
                tensors=[*tensors.values(), tf.constant(json.dumps(metadata))],
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
            _remove(old)
        # The state file is for tf.train.latest_checkpoint and for telling a lost file from a half-written one.
        names = [os.path.basename(p) for p in paths[:keep]]
        lines = [f'model_checkpoint_path: "{names[0]}"']
        lines += [f'all_model_checkpoint_paths: "{name}"' for name in reversed(names)]
        write_atomically(os.path.join(directory, "checkpoint"), "\n".join(lines) + "\n")


def _remove(path):
    """Deletes a checkpoint, the index first: without it there is none."""
    for end in (_INDEX, _DATA):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + end)


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
    directory, name = os.path.split(path)
    with without_pattern(directory) as directory:
        reader = tf.train.load_checkpoint(os.path.join(directory, name))
        tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return tensors, json.loads(tensors.pop("metadata"))


def load_newest(directory):
    """Reads the newest checkpoint that is sound; warns of each damaged one that is newer.

    Returns: a dict from names to arrays, and the metadata; None if there is no checkpoint at all.
    Raises: `mnist.Error` if there are checkpoints and none is sound.
    """
    paths, listed = None, _list(directory)
    while paths != listed:  # a run that trains deletes old ones between list and read
        paths, damaged, loaded = listed, {}, None
        for path in paths:
            try:
                loaded = _read(path)
                break
            # Whatever the reader raises (DataLossError, NotFoundError, ValueError): it cannot be read.
            except Exception as error:
                damaged[path] = " ".join(str(error).split())[:200]
        if loaded and not damaged:
            return loaded
        listed = _list(directory)
    for path, reason in damaged.items():
        logging.warning("%s is damaged: %s", path, reason)
    if damaged and loaded:
        logging.warning("Resuming from %s instead.", paths[len(damaged)])
    elif damaged:
        raise Error(
            f"none of the {len(damaged)} checkpoints in {directory} can be read. "
            "Bring back a copy of one, or start over with another --workdir."
        )
    return loaded


def steps(directory):
    """The steps of the checkpoints in a folder, the newest first."""
    return [int(path.rpartition("-")[2]) for path in _list(directory) if os.path.exists(path + _INDEX)]


def remove_newer(directory, step_number):
    """Deletes the checkpoints of steps after `step_number`."""
    with write_errors(f"write to {directory}"):
        for step in [step for step in steps(directory) if step > step_number]:
            _remove(os.path.join(directory, f"ckpt-{step}"))


def load(directory, step):
    """Reads the checkpoint of a step. Returns: as `load_newest`. Raises: `mnist.Error` if it is damaged."""
    path = os.path.join(directory, f"ckpt-{step}")
    try:
        return _read(path)
    except Exception as error:  # whatever the reader raises
        raise Error(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


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
    saved = {name for name in tensors if not name.startswith(("eval_model/", "run/"))}
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
