"""Checks of what the methods of a step return and take, so that a mistake is named in a line."""

import inspect

from mnist import Error

import keras
import tensorflow as tf

# AutoGraph would take 0.1 s for each function, and there is nothing to convert.
_not_converted = tf.autograph.experimental.do_not_convert


def check_trained(cls, variables):
    """Raises `mnist.Error` if `trained_variables` of a class returned anything but different trainable variables."""
    where, seen = f"trained_variables of {cls.__name__}", set()
    if not isinstance(variables, (tuple, list)):
        raise Error(f"{where} returned {_describe(variables)}, expected a list of variables.")
    for variable in variables:
        if not isinstance(variable, (keras.Variable, tf.Variable)):
            raise Error(f"{where} has a {type(variable).__name__}, expected Keras variables or tf.Variables.")
        name = variable.path if hasattr(variable, "path") else variable.name
        if not variable.trainable:
            raise Error(f"{where} has {name}, which is not trainable.")
        inner = variable.value if isinstance(variable, keras.Variable) else variable
        if id(inner) in seen:
            raise Error(f"{where} has {name} twice.")
        seen.add(id(inner))


@_not_converted
def check_takes(step, name, batch):
    """Raises `mnist.Error` for a method of a step that does not take the tensors of a batch."""
    try:
        inspect.signature(getattr(step, name)).bind(*batch)
    except TypeError:
        more = f" and {len(batch) - 2} more" if len(batch) > 2 else ""
        raise Error(
            f"{name} of {type(step).__name__} does not take a batch of images, labels{more}: "
            "give it the arguments that training_set or prepare_batch returns."
        ) from None


@_not_converted
def check_batch(step, found):
    """Returns what `prepare_batch` returned. Raises: `mnist.Error` if `compute_gradients` cannot take it."""
    if not isinstance(found, (tuple, list)) or len(found) < 2:
        what = "expected images and labels"
        raise Error(f"prepare_batch of {type(step).__name__} returned {_describe(found)}, {what}.")
    check_takes(step, "compute_gradients", found)
    return found


@_not_converted
def check_loss(step, found):
    """Returns the loss or the dict of losses, and the logits, of what `compute_loss` returned.

    Raises: `mnist.Error` for anything else, or if the losses of the model are missing.
    """
    where = f"compute_loss of {type(step).__name__}"
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise Error(f"{where} returned {_describe(found)}, expected the loss and the logits.")
    losses, logits = found
    named = losses if isinstance(losses, dict) else {"loss": losses}
    for name, loss in named.items():
        if getattr(loss, "shape", None) != () or not loss.dtype.is_floating:
            raise Error(f"{where} returned {_describe(loss)} for {name!r}, expected a scalar: take its mean.")
    if isinstance(losses, dict) and (not losses or {*losses} & {"loss", "accuracy"} or {*map(type, losses)} != {str}):
        raise Error(f"{where} returned losses named {[*losses]}, expected texts except 'loss' and 'accuracy'.")
    if not hasattr(logits, "shape") or not tf.TensorShape(logits.shape).is_compatible_with([None, None]):
        raise Error(f"{where} returned {_describe(logits)} for the logits, expected [B, classes].")
    if not step._context.has_losses and step.model.losses:
        raise Error(
            f"{where} leaves out the losses of regularizers and add_loss, which the {type(step.model).__name__} "
            "has: pass its loss through self.add_losses(loss), which adds them."
        )
    return losses, logits


@_not_converted
def classes_of(step, labels, logits):
    """Returns the class of each image, int64 `[B]`, of the labels of `prepare_batch`, `[B, classes]` or `[B]`.

    Raises: `mnist.Error` for labels of another shape.
    """
    shape = tf.TensorShape(labels.shape) if hasattr(labels, "shape") else None
    if shape is not None and shape.is_compatible_with(logits.shape):
        return tf.argmax(labels, 1)
    if shape is not None and shape.rank == 1:
        return tf.cast(labels, tf.int64)
    raise Error(
        f"prepare_batch of {type(step).__name__} gave {_describe(labels)} for the labels, which has no accuracy: "
        "return labels [B] or [B, classes], and other targets after them."
    )


@_not_converted
def check_gradients(step, found):
    """Returns the gradients and the scalars of what `compute_gradients` returned. Raises: `mnist.Error` for others."""
    if not isinstance(found, (tuple, list)) or len(found) != 2 or not isinstance(found[1], dict):
        what = "expected a list of gradients and a dict of scalars"
        raise Error(f"compute_gradients of {type(step).__name__} returned {_describe(found)}, {what}.")
    check_count(step, "compute_gradients returned", found[0])
    return found


@_not_converted
def check_count(step, what, gradients):
    """Raises `mnist.Error` if there is not one gradient for each trained variable. `what` begins its message."""
    if not isinstance(gradients, (tuple, list)):
        raise Error(f"{what} {_describe(gradients)}, expected a list of gradients.")
    count = len(step.trained_variables())
    if len(gradients) != count:
        raise Error(
            f"{what} {len(gradients)} gradients, but {type(step).__name__} trains {count} variables: give one for each "
            "of trained_variables, or None."
        )


def _describe(value):
    if isinstance(value, (tuple, list)):
        return f"{len(value)} values"
    shape = getattr(value, "shape", None)
    if shape is None or tf.TensorShape(shape).rank is None:
        return f"a {type(value).__name__}"
    return f"a tensor {list(shape)}"
