"""What this loop would train otherwise than `fit`: refused in a line before the first step."""

from mnist import Error
from mnist.model.cnn import IMAGE_SHAPE, keep_state, scale_images

import keras
import numpy as np
import tensorflow as tf

# Methods of a model that change what fit trains with or what evaluate says.
_OF_FIT = (
    "train_step",
    "test_step",
    "compute_loss",
    "compute_metrics",
    "make_train_function",
    "compile",
    "fit",
    "evaluate",
)


def _is_cross_entropy_of_logits(loss, config):
    known = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    if type(loss) not in known or config.get("loss_weights"):
        return False
    return loss.get_config() | {"name": None} == type(loss)(from_logits=True).get_config() | {"name": None}


def check_model_and_optimizer(model, optimizer):
    """Raises `mnist.Error` for what `fit` would heed and a `TrainStep` does not."""
    if not isinstance(model, keras.Model):
        raise Error(f"the model is a {type(model).__name__}, expected a keras.Model.")
    if not model.built:
        raise Error(f"the {type(model).__name__} is not built: begin it with keras.Input, or build it yourself.")
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise Error(f"the optimizer is a {type(optimizer).__name__}, expected one of keras.optimizers.")
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):
        raise Error("a MultiOptimizer has no learning rate of its own: override apply_gradients with two optimizers.")
    name = type(model).__name__
    for method in _OF_FIT:
        if getattr(type(model), method) is not getattr(keras.Model, method) or method in vars(model):
            raise Error(
                f"{name} has a {method} of its own, which only fit calls: override compute_loss of a TrainStep."
            )
    loss = getattr(model, "loss", None)  # as compiled
    if loss is not None and not _is_cross_entropy_of_logits(loss, model.get_compile_config() or {}):
        raise Error(
            f"{name} is compiled with another loss than the cross-entropy of logits, which only fit heeds: leave out "
            "compile(), and override compute_loss of a TrainStep."
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
    with keep_state(model):
        answers = model(scale_images(images), training=False)
    if not tf.is_tensor(answers):
        raise Error(f"{name} answers with a {type(answers).__name__}, expected one tensor of logits.")
    if getattr(answers, "_keras_mask", None) is not None:
        raise Error(f"{name} answers with a mask, by which fit leaves out images: end it before the logits.")
    if answers.shape != (len(images), num_classes):
        found = f"{name} answers {len(images)} images with {list(answers.shape)}"
        raise Error(f"{found}, expected [B, {num_classes}]: {dataset.name} has {num_classes} classes.")
    answers = np.asarray(answers, np.float64)
    if (answers > 0).all() and (answers < 1).all():
        end = "a softmax" if np.allclose(answers.sum(axis=1), 1, atol=1e-2) else "a sigmoid"
        raise Error(f"{name} answers with probabilities, as of {end} at its end; the loss takes logits: leave it out.")
