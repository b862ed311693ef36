"""Refuses models and optimizers that this loop would train otherwise than `fit`, before the first step."""

from mnist import Error
from mnist.model.inference import IMAGE_SHAPE, keep_state, scale_images

import keras
import numpy as np
import tensorflow as tf

# Methods of a model that change what fit trains or what evaluate returns.
_OF_FIT = (
    *("train_step", "test_step", "compute_loss", "compute_metrics", "make_train_function"),
    *("compile", "fit", "evaluate"),
)

_OF_GREY_LEVELS = 1 / 25  # A smaller scale belongs to images from 0 to 255, whose standard deviation is 79 in MNIST.


def check_model_and_optimizer(model, optimizer):
    """Raises `mnist.Error` for a model or an optimizer with properties that `fit` uses and a `TrainStep` ignores."""
    name = type(model).__name__
    if not isinstance(model, keras.Model):
        raise Error(f"the model is a {name}, expected a keras.Model.")
    if not model.built:
        raise Error(f"the {name} is not built: begin it with keras.Input, or build it yourself.")
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise Error(f"the optimizer is a {type(optimizer).__name__}, expected one of keras.optimizers.")
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):
        raise Error("a MultiOptimizer has no learning rate of its own: override apply_gradients with two optimizers.")
    for method in _OF_FIT:
        if getattr(type(model), method) is not getattr(keras.Model, method) or method in vars(model):
            raise Error(
                f"{name} has a {method} of its own, which only fit calls: override compute_loss of a TrainStep."
            )
    loss = getattr(model, "loss", None)  # the argument of compile()
    if loss is not None and not _is_cross_entropy_of_logits(loss, model.get_compile_config() or {}):
        raise Error(
            f"{name} is compiled with another loss than the cross-entropy of logits, which only fit uses: leave out "
            "compile(), and override compute_loss of a TrainStep."
        )
    if not model.trainable_variables:
        raise Error(f"{name} has no trainable variables.")
    _check_scale(model)


def _check_scale(model):
    """Raises `mnist.Error` if layers before the first weights scale images in [0, 1] as if they were from 0 to 255."""
    scale = 1.0
    for layer in _leaves(model):
        if isinstance(layer, keras.layers.Rescaling):
            scale *= np.max(np.abs(layer.scale))
        elif isinstance(layer, keras.layers.Normalization) and layer.mean is not None:
            scale /= max(1.0, np.max(layer.mean), np.sqrt(np.max(layer.variance)))
        elif layer.trainable_weights:
            break
    if scale <= _OF_GREY_LEVELS:
        raise Error(f"{type(model).__name__} scales its images by {scale:.2g}, but they are in [0, 1]: leave that out.")


def _leaves(layer):
    """Yields the layers in a layer that contain no others, in order."""
    for inner in layer._layers:
        yield from _leaves(inner) if inner._layers else [inner]


def _is_cross_entropy_of_logits(loss, config):
    known = (keras.losses.CategoricalCrossentropy, keras.losses.SparseCategoricalCrossentropy)
    if type(loss) not in known or config.get("loss_weights"):
        return False
    return loss.get_config() | {"name": None} == type(loss)(from_logits=True).get_config() | {"name": None}


def check_answers(model, dataset):
    """Raises `mnist.Error` for a model that does not map the images to one logit for each class.

    Refuses probabilities too, because a model that ends in a softmax would train, but worse.
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
        raise Error(
            f"{name} answers with probabilities, so it has {end} at its end: leave that out, as the loss takes logits."
        )
