"""Metrics of a step beside loss and accuracy, measured in the run or by another command."""

from mnist import Error, checkpoint
from mnist.model import copy_model, import_objects, module_of
from mnist.settings import values_of
from mnist.step.train_step import TrainStep

import keras
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
    """Describes a step as plain JSON, so that `own_metrics` can make it again. None if it has no own metrics."""
    cls = type(step)
    if cls.extra_metrics is TrainStep.extra_metrics:
        return None
    return {"module": module_of(cls), "name": cls.__name__, "seed": step.seed, "settings": values_of(step)}


def own_metrics(description, model, tensors, images, labels, logits):
    """Makes a step again, without its optimizer, and returns its `extra_metrics`, a dict of floats.

    Args:
      description: a dict, as `describe_measuring` returned it.
      model: the evaluated `keras.Model`.
      tensors: a dict from names to arrays, the content of the checkpoint.
      images, labels, logits: as `extra_metrics` takes them.

    Raises: any exception of the class, for example if it reads a file that is not here.
    """
    module, name = description["module"], description["name"]
    cls = import_objects({"module": module, "class_name": name, "config": {}})[name]
    step = cls(copy_model(model), keras.optimizers.SGD(), seed=description["seed"], **description["settings"])
    for key, variable in checkpoint.variables_of(step).items():
        if not key.startswith(("model/", "optimizer/")):
            variable.assign(tensors[key])
    step.view.part = "test"
    return check_extra_metrics(step.extra_metrics(images, labels, logits), {"loss", "accuracy"})
