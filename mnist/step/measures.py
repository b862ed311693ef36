"""Metrics of a step beside loss and accuracy, measured in the run or by another command."""

from mnist import Error, checkpoint
from mnist.cli import flagfile
from mnist.model import copy_model, describe_model, import_objects, make_object, module_of, rebuild
from mnist.settings import values_of
from mnist.step.context import Context
from mnist.step.train_step import TrainStep
from mnist.step.view import View

import numpy as np


def check_extra_metrics(metrics, others):
    """Returns the dict of an `extra_metrics` with floats, which may be NaN.

    Raises: `mnist.Error` for a name that is among `others`, and for a value that is not a number.
    """
    if not isinstance(metrics, dict):
        raise Error(f"extra_metrics returns {metrics!r:.50}, expected a dict from names to numbers.")
    checked = {}
    for name, value in metrics.items():
        if name in checkpoint.RESERVED:
            raise Error(f"extra_metrics has a {name!r}, which the files of a run have already: give it another name.")
        if name in others:
            raise Error(f"extra_metrics has a {name!r}, which each evaluation has already: give it another name.")
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
            found = f"of shape {np.shape(value)}" if np.ndim(value) else f"{value!r:.50}"
            raise Error(f"extra_metrics has {name!r} {found}, expected a number.")
        checked[name] = float(value)
    return checked


def describe_measuring(step):
    """Describes a step as plain JSON, so that `restore_step` can make it again. None if it has no own metrics."""
    cls = type(step)
    if cls.extra_metrics is TrainStep.extra_metrics:
        return None
    return {
        "module": module_of(cls),
        "name": cls.__name__,
        "seed": step.seed,
        "settings": values_of(step),
        "optimizer": describe_model(step.optimizer),
        # A checkpoint describes the evaluated model already.
        "model": None if step.eval_model is step.model else describe_model(step.model),
        "variables": len(step.model.variables),
        "attributes": checkpoint.attributes(step),
    }


def restore_step(description, model, tensors, state, workdir, dataset):
    """Makes the step of a run again, with all values of a checkpoint and the flags of the run.

    Args:
      description: a dict, as `describe_measuring` returned it.
      model: the evaluated `keras.Model`.
      tensors: a dict from names to arrays, the content of the checkpoint.
      state: a dict. The `state` of the step as the checkpoint holds it, or None.
      workdir: the folder of the run.
      dataset: the `data.Dataset` of the run, or None.

    Returns: a `TrainStep`.
    Raises: any exception of the class, for example if it reads a file that is not here.
    """
    module, name = description["module"], description["name"]
    objects = import_objects({"module": module, "class_name": name, "config": {}})
    if name not in objects:
        raise Error(f"{module} has no class {name} at its top level.")
    if "optimizer" not in description:
        raise Error("an older version of this code did not save its optimizer.")
    flagfile.set_imported_flags(workdir)
    if description["model"] is None:
        trained = copy_model(model)
    else:
        weights = [tensors[f"model/{i}"] for i in range(description["variables"])]
        trained = rebuild(description["model"], weights, None, "its model")
    optimizer = make_object(description["optimizer"])
    step = objects[name](trained, optimizer, seed=description["seed"], **description["settings"])
    now = checkpoint.attributes(step)
    for attribute, was, other in checkpoint.differences_in(description.get("attributes", now), now, ""):
        values = f"was {checkpoint.show(was)} in the run, is {checkpoint.show(other)} in a new step"
        raise Error(f"{attribute} {values}: set it in __init__, or make it a Setting.")
    checkpoint.assign(step, tensors)
    if state is not None:
        checkpoint.restore_state(step.state, state)
    step._context = Context(view=View(workdir, dataset and dataset.read_only()))
    return step
