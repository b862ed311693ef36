"""Metrics of a step beside loss and accuracy, also where another command makes the step again."""

from mnist import Error, checkpoint
from mnist.model import copy_model, import_objects, module_of
from mnist.settings import settings_of
from mnist.step.train_step import TrainStep

import keras
import numpy as np


def check_extra_metrics(metrics, others):
    """Returns a dict of numbers as floats, NaN among them. Raises: `mnist.Error` that names what is none.

    Args:
      metrics: what `extra_metrics` returned.
      others: names that are taken.
    """
    checked = {}
    for name, value in metrics.items():
        if name in others:
            raise Error(f"extra_metrics has a {name!r}, which each evaluation has already: give it another name.")
        if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
            found = f"of shape {np.shape(value)}" if np.ndim(value) else f"{value!r:.50}"
            raise Error(f"extra_metrics has {name!r} {found}, expected a number.")
        checked[name] = float(value)
    return checked


def describe_measuring(step):
    """What another process needs to measure what `step.extra_metrics` does, as JSON; None if that is nothing."""
    cls = type(step)
    if cls.extra_metrics is TrainStep.extra_metrics:
        return None
    settings = {name: getattr(step, name) for name in settings_of(cls)}
    return {"module": module_of(cls), "name": cls.__name__, "seed": step.seed, "settings": settings}


def own_metrics(description, model, tensors, images, labels, logits):
    """What `extra_metrics` of a step says that is made again, with all but its optimizer.

    Args:
      description: of `describe_measuring`.
      model: the evaluated model.
      tensors: of the checkpoint.
      images, labels, logits: as `extra_metrics` takes them.

    Raises: whatever the class does, in a process that has not what it needs.
    """
    module, name = description["module"], description["name"]
    cls = import_objects({"module": module, "class_name": name, "config": {}})[name]
    step = cls(copy_model(model), keras.optimizers.SGD(), seed=description["seed"], **description["settings"])
    for key, variable in checkpoint.variables_of(step).items():
        if not key.startswith(("model/", "optimizer/")):
            variable.assign(tensors[key])
    step.view.part = "test"
    return check_extra_metrics(step.extra_metrics(images, labels, logits), {"loss", "accuracy"})
