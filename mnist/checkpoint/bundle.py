"""Saves and reads checkpoints, which hold everything that must survive a crash.

A checkpoint is one TensorFlow bundle, `ckpt-<step>.index` and `ckpt-<step>.data-00000-of-00001`, which
`tf.train.load_checkpoint` reads. It holds four things by name:

- every variable of the step,
- the variables of the evaluated model, `eval_model/...`,
- tensors that the run adds, `run/...`,
- one string of JSON, `metadata`.
"""

import contextlib
import glob
import json
import os
import re

from mnist import Error
from mnist.checkpoint.variables import variables_of
from mnist.files import sync, without_pattern, write_errors

import numpy as np
import tensorflow as tf
from absl import logging

_DATA = ".data-00000-of-00001"
_INDEX = ".index"
_STATE = ".state"


class NotFinite(Error):
    """A weight that is NaN or infinite."""


def check_finite(variables):
    """Raises `NotFinite` if one of a dict of `tf.Variable`s is NaN or infinite."""
    for name, variable in variables.items():
        if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all():
            raise NotFinite(f"{name} ({variable.path if hasattr(variable, 'path') else variable.name})")


def save(directory, variables, metadata, keep, extra=None):
    """Saves variables and metadata as `ckpt-<metadata["step"]>`.

    The files get their names only when they are whole and on disk, the index last. A checkpoint of the same step is
    kept under the names `before-<step>.*` until both of its files are replaced.

    Args:
      variables: a dict of `tf.Variable`s, from `variables_of` and `variables_of_eval_model`.
      metadata: a dict of plain JSON with the number of the step, `step`.
      keep: an int. The number of checkpoints to keep, the newest. Older ones are deleted.
      extra: a dict of further tensors, saved as `run/<name>`. `assign` ignores them.

    Raises: `NotFinite` if a variable is NaN or infinite. `mnist.Error` if the disk is full or read-only. In both
      cases the checkpoints in the folder stay as they are.
    """
    check_finite(variables)
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
            there = sorted({metadata["step"], *steps(directory)}, reverse=True)
            lines = [f'model_checkpoint_path: "ckpt-{there[0]}"']
            lines += [f'all_model_checkpoint_paths: "ckpt-{step}"' for step in reversed(there[:keep])]
            with open(temporary + _STATE, "w") as file:
                file.write("\n".join(lines) + "\n")
            around = os.path.dirname(os.path.abspath(directory))
            sync(*(temporary + end for end in (_DATA, _INDEX, _STATE)), around)
            before = os.path.join(directory, f"before-{metadata['step']}")
            with contextlib.suppress(OSError):  # there is none to keep, it is kept already, or the disk has no links
                for end in (_DATA, _INDEX):
                    os.link(path + end, before + end)
                sync(directory)
            for end in (_DATA, _INDEX):
                os.replace(temporary + end, path + end)
            sync(directory)
            # tf.train.latest_checkpoint reads the state file. `_list` finds in it which files were lost.
            os.replace(temporary + _STATE, os.path.join(directory, "checkpoint"))
            _remove(before)
            for step in there[keep:]:
                _remove(os.path.join(directory, f"ckpt-{step}"))
        except Exception:
            for leftover in glob.glob(f"{glob.escape(temporary)}*"):
                with contextlib.suppress(OSError):
                    os.remove(leftover)
            raise


def _remove(path):
    """Deletes a checkpoint, the index first, because no reader finds a checkpoint without it."""
    for end in (_INDEX, _DATA):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path + end)


def _list(directory):
    """Returns the steps of all checkpoints, the newest first, also of damaged and lost ones."""
    try:
        names = [name.removesuffix(_INDEX) for name in os.listdir(directory) if name.endswith(_INDEX)]
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:  # a run must not start over because its checkpoints cannot be listed
        raise Error(f"cannot read {directory}: {error.strerror}.") from None
    # A damaged state file does not matter, because it lists the same files. One that is not there any more was lost.
    with contextlib.suppress(Exception):
        state = tf.train.get_checkpoint_state(directory)
        names += state.all_model_checkpoint_paths if state else []
    found = [re.fullmatch(r"ckpt-(\d+)", os.path.basename(name)) for name in names]
    return sorted({int(match[1]) for match in found if match}, reverse=True)


def steps(directory):
    """Returns the steps of the checkpoints in a folder, the newest first."""
    return [step for step in _list(directory) if os.path.exists(os.path.join(directory, f"ckpt-{step}{_INDEX}"))]


def load(directory, step):
    """Reads the checkpoint of a step, and verifies every checksum.

    Reads the one that `save` kept of this step if a process was killed while it replaced the files.

    Returns: a dict from names to arrays, and the metadata.
    Raises: `mnist.Error` if it is damaged.
    """
    path = os.path.join(directory, f"ckpt-{step}")
    try:
        with without_pattern(directory) as place:
            try:
                return _read(os.path.join(place, f"ckpt-{step}"))
            except Exception:
                if not os.path.exists(before := os.path.join(place, f"before-{step}{_INDEX}")):
                    raise
                return _read(before.removesuffix(_INDEX))
    except Exception as error:  # DataLossError, NotFoundError, ValueError and others
        raise Error(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None


def _read(path):
    reader = tf.train.load_checkpoint(path)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    metadata = json.loads(tensors.pop("metadata"))
    tensors.setdefault("iterations/0", np.array(metadata["step"]))  # an older version had no counter of its own
    return tensors, metadata


def load_newest(directory):
    """Reads the newest checkpoint that is sound, and warns about each damaged one that is newer.

    Returns: as `load`. None if there is no checkpoint.
    Raises: `mnist.Error` if all checkpoints are damaged.
    """
    before, listed = None, _list(directory)
    while before != listed:  # a run that trains may delete old ones between list and read
        before, damaged, loaded = listed, [], None
        for step in before:
            try:
                loaded = load(directory, step)
                break
            except Error as error:
                damaged.append(error)
        if loaded and not damaged:
            return loaded
        listed = _list(directory)
    for error in damaged:
        logging.warning("%s", error)
    if damaged and loaded:
        logging.warning("Resuming from %s instead.", os.path.join(directory, f"ckpt-{before[len(damaged)]}"))
    elif damaged:
        raise Error(
            f"none of the {len(damaged)} checkpoints in {directory} can be read. "
            "Restore a copy of one, or start over with another --workdir."
        )
    return loaded


def remove_newer(directory, step_number):
    """Deletes the checkpoints of steps after `step_number`."""
    with write_errors(f"write to {directory}"):
        for step in steps(directory):
            if step > step_number:
                _remove(os.path.join(directory, f"ckpt-{step}"))


def set_aside_newer(directory, step_number):
    """Renames damaged checkpoints after `step_number`, so that they are kept but no longer listed."""
    for step in _list(directory):
        for end in (_INDEX, _DATA) if step > step_number else ():
            name = f"ckpt-{step}{end}"
            with contextlib.suppress(FileNotFoundError):
                os.replace(os.path.join(directory, name), os.path.join(directory, f"damaged-{name}"))


def assign(step, tensors):
    """Assigns to a step the values that `load_newest` read. Raises: `mnist.Error` if they do not fit."""
    variables = variables_of(step)
    saved = {name for name in tensors if not name.startswith(("eval_model/", "run/"))}
    different = sorted(saved ^ variables.keys()) or sorted(
        name for name in saved if tensors[name].shape != tuple(variables[name].shape)
    )
    if different:
        raise Error(
            f"the checkpoint belongs to another step or model: {different[0]} does not fit. "
            "Start with the same code, or with another --workdir."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])
