"""What this loop would train otherwise than `fit`, or could not save: refused in a line before the first step."""

import math
import re

from mnist import Error
from mnist.model import IMAGE_SHAPE, scale_images

import keras
import numpy as np
import tensorflow as tf


def check_model_and_optimizer(model, optimizer):
    """Raises `mnist.Error` for what `fit` would heed and a `TrainStep` does not."""
    name = type(model).__name__
    for method in ("train_step", "compute_loss"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise Error(
                f"{name} has a {method} of its own, which only fit calls: override compute_loss of a TrainStep."
            )
    if not model.trainable_variables:
        raise Error(f"{name} has no trainable variables.")
    known = getattr(optimizer, "_trainable_variables", [])
    if optimizer.built and [id(v) for v in known] != [id(v) for v in model.trainable_variables]:
        raise Error(f"the {type(optimizer).__name__} was built for the variables of another model: make a new one.")


def check_answers(model, dataset):
    """Raises `mnist.Error` for a model that takes no such images or does not answer with a logit for each class.

    A model that ends in a softmax would train all the same, and worse.
    """
    images, num_classes = dataset.validation.images[:8], len(dataset.classes)
    name, shape = type(model).__name__, getattr(model, "input_shape", None)
    if isinstance(shape, tuple) and not tf.TensorShape(shape).is_compatible_with([None, *IMAGE_SHAPE]):
        raise Error(f"{name} takes inputs {list(shape)}, expected images {[None, *IMAGE_SHAPE]}: reshape them in it.")
    answers = model(scale_images(images), training=False)
    if not tf.is_tensor(answers):
        raise Error(f"{name} answers with a {type(answers).__name__}, expected one tensor of logits.")
    if answers.shape != (len(images), num_classes):
        found = f"{name} answers {len(images)} images with {list(answers.shape)}"
        raise Error(f"{found}, expected [B, {num_classes}]: {dataset.name} has {num_classes} classes.")
    answers = np.asarray(answers, np.float64)
    if (answers > 0).all() and (answers < 1).all():
        end = "a softmax" if np.allclose(answers.sum(axis=1), 1, atol=1e-2) else "a sigmoid"
        raise Error(f"{name} answers with probabilities, as of {end} at its end; the loss takes logits: leave it out.")


def check_step(train_step, variables, jit_compile):
    """Raises `mnist.Error` for what a traced step uses and no checkpoint would hold, shows and is no number, or XLA
    cannot compile.

    Args:
      train_step: the concrete function of one step.
      variables: all that a checkpoint holds, `tf.Variable`s.
      jit_compile: the `tf.function` of the step if it is to be compiled, None if not.
    """
    held = {id(variable) for variable in variables}
    for variable in train_step.graph.variables:
        if id(variable) not in held:
            raise Error(
                f"the step uses the variable {variable.name}, which checkpoints would not hold: make it, or the "
                "model, layer or optimizer that has it, an attribute of the step."
            )
    scalars = train_step.structured_outputs
    if not isinstance(scalars, dict) or not {"loss", "accuracy"} <= scalars.keys():
        raise Error("the step does not return a dict of scalars with 'loss' and 'accuracy' among them.")
    for name, value in scalars.items():
        if getattr(value, "shape", None) != () or not (
            value.dtype.is_bool or value.dtype.is_integer or value.dtype.is_floating
        ):
            found = f"{value.dtype.name} {value.shape}" if hasattr(value, "shape") else f"a {type(value).__name__}"
            raise Error(f"the step's {name!r} is {found}, expected a number for TensorBoard.")
    if jit_compile:
        _check_compilation(jit_compile, train_step)


def _check_compilation(function, train_step):
    """To find it out in the loop would fill a screen."""
    images, labels = (tf.zeros([size or 1 for size in x.shape], x.dtype) for x in train_step.inputs[:2])
    try:
        function.experimental_get_compiler_ir(images, labels)(stage="hlo")
    except ValueError as error:
        operation = re.search(r"unsupported operations .*?: (\w+)", str(error))
        what = f"the operation {operation[1]} of " if operation else ""
        raise Error(f"XLA cannot compile {what}this step: leave out --jit_compile.") from None


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


def without_nan(numbers):
    """A dict with None for what is not finite: JSON has no word for NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
