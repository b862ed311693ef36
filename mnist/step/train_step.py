"""One update of the weights, in small pieces that research overrides."""

import zlib

from mnist import Error, checkpoint
from mnist.data import epoch_order
from mnist.model import call_to_train, checks, count_outputs, scale_images
from mnist.settings import Setting, take
from mnist.step.averaged_model import AveragedModel
from mnist.step.context import Context

import keras
import tensorflow as tf

# Attributes of TrainStep that no subclass may replace.
_PRIVATE = ("_averaging", "_context", "_slice_gradients")
_RESERVED = ("averaged", "iterations", "model", "optimizer", "seed", "view", *_PRIVATE)


class TrainStep(tf.Module):
    """One step of training. Override the smallest method that suffices, and call `super()`.

    Checkpoints save every `tf.Variable`, Keras model, layer and optimizer in the attributes of a subclass. Its
    hyperparameters are `Setting`s. A resume is refused if settings differ, or public attributes that can be compared.
    Attributes whose name begins with `_` are not compared.

    Args:
      model: a built `keras.Model` from float32 images `[B, 28, 28, 1]` to logits `[B, classes]`.
      optimizer: a Keras optimizer. For a `mixed_float16` model it is wrapped to scale the loss, as `compile` does.
      seed: an int. The seed of the order of the data and of every random draw within the step. Default: 0. The weights
        of the model exist already. `keras.utils.set_random_seed(0)` before `CNN()` seeds them.
      settings: the values of the class's `Setting`s. Default: their defaults.

    Raises: TypeError for a keyword that is not a setting. ValueError for a value out of range. `mnist.Error` for a
      model or an optimizer that this loop would not train as `fit` does.
    """

    slices = Setting(
        1,
        "Parts of a batch, a power of two, each computed alone: any number of devices or machines that divides it "
        "gives the same bits. 2 are fastest on two cores. Default 1: the bits of fit.",
        low=1,
        group="speed",
    )

    def __init__(self, model, optimizer, *, seed=0, **settings):
        super().__init__(name="train_step")
        take(self, settings)
        if self.slices & (self.slices - 1):
            raise Error(f"--slices={self.slices} is not a power of two: expected 1, 2, 4, 8 and so on.")
        checks.check_model_and_optimizer(model, optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if model.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.seed = seed
        self._context = Context()  # the code that compiles the step replaces it
        optimizer.build(model.trainable_variables)
        self._averaging = AveragedModel(model, _inner(optimizer)) if _inner(optimizer).use_ema else None
        self.averaged = self._averaging and self._averaging.model  # checkpoints name its variables after the attribute

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in _RESERVED:
            if getattr(cls, name, None) is not getattr(TrainStep, name, None):
                raise _reserved(cls, name)

    def __setattr__(self, name, value):
        if name in _RESERVED and name in vars(self) and not (name == "_context" and isinstance(value, Context)):
            raise _reserved(type(self), name)
        super().__setattr__(name, value)

    @property
    def view(self):
        """The `View` of the run: its folder, its data, and when the step's own summaries are written."""
        return self._context.view

    @property
    def iterations(self):
        """The global step, an integer `tf.Variable`. It counts batches, while optimizers may count updates."""
        return _inner(self.optimizer).variables[0].value

    @property
    def eval_model(self):
        """The `keras.Model` that is evaluated and exported, always the same object. With `use_ema` it is a copy."""
        return self.model if self.averaged is None else self.averaged

    def update_eval_model(self):
        """Updates `eval_model`, called outside of any graph before the model is evaluated or saved."""
        if self._averaging:
            self._averaging.update()

    def random_seed(self, purpose):
        """Returns a seed for a stateless random op, int32 `[2]`, a function of `(seed, step, purpose)`.

        Draws of one step with the same purpose, a string, are equal. Within `compute_loss` each slice has its own seed.
        """
        salt = (zlib.crc32(purpose.encode()) + 0x1E3779B9 * self._context.slice_number) & 0x7FFFFFFF
        step = tf.cast(self.iterations, tf.int32)
        return tf.random.experimental.stateless_fold_in(tf.stack([self.seed, step]), salt)

    def own_variables(self):
        """Returns the `tf.Variable`s that are attributes, for code that undoes what a second pass writes."""
        return [value for value in vars(self).values() if isinstance(value, tf.Variable)]

    def epoch_order(self, examples, epoch):
        """Returns the order in which an epoch goes through the training set, integers `[N]`.

        Called outside of any graph when the epoch begins, so that it may depend on the variables of the step.
        Checkpoints save the order. An example may come twice or not at all.

        Args:
          examples: a `data.Examples`. Uint8 images `[N, 28, 28, 1]` and integer labels `[N]`, NumPy arrays.
          epoch: an int, counted from 0.
        """
        return epoch_order(len(examples.labels), self.seed, epoch)

    def prepare_batch(self, images, labels):
        """Converts uint8 images `[B, 28, 28, 1]` and integer labels `[B]` for the loss.

        Returns: float32 images `[B, 28, 28, 1]` in [0, 1] and one-hot float32 labels `[B, classes]`.
        """
        return scale_images(images), tf.one_hot(labels, count_outputs(self.model))

    def compute_loss(self, images, labels):
        """Runs the model in training mode on what `prepare_batch` returned.

        Returns: the mean loss with the losses of regularizers and `add_loss`, a scalar, and logits `[B, classes]`.
        """
        logits = tf.cast(call_to_train(self.model, images), keras.config.floatx())  # as Keras' losses do
        losses = tf.nn.softmax_cross_entropy_with_logits(labels, logits)  # [B]
        return _total(tf.reduce_mean(losses), self.model.losses), logits

    def compute_gradients(self, images, labels):
        """Computes means over the batch. With `slices` it calls `compute_loss` with one part of the batch at a time.

        Returns: one gradient per trainable variable, None if the loss does not depend on it, and a dict of scalars to
          show. If the optimizer scales the loss, the gradients belong to the scaled loss.
        """
        variables = list(checkpoint.variables_of(self).values())
        context = self._context
        return context.replicas.mean(
            self._slice_gradients, self.slices, (images, labels), variables, context.jit_compile
        )

    def _slice_gradients(self, images, labels, number):
        before = dict(vars(self))
        with self._context.tracing_slice(number):
            with tf.GradientTape() as tape, tf.name_scope("loss"):
                loss, logits = self.compute_loss(images, labels)
                scaled_loss = self.optimizer.scale_loss(loss)
            with tf.name_scope("gradients"):
                gradients = tape.gradient(scaled_loss, [v.value for v in self.model.trainable_variables])
                for gradient, variable in zip(gradients, self.model.trainable_variables, strict=True):
                    if isinstance(gradient, tf.Tensor):  # images of a size unknown to the graph leave the shape open
                        gradient.set_shape(variable.shape)
        if self.slices > 1:  # a tensor that compute_loss kept has one slice, not the whole batch
            kept = [name for name, x in vars(self).items() if tf.is_tensor(x) and x is not before.get(name)]
            for name in kept:
                delattr(self, name)
                vars(self).update({name: before[name]} if name in before else {})
        with tf.name_scope("metrics"):
            correct = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
            accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
        return gradients, {"loss": loss, "accuracy": accuracy}

    def apply_gradients(self, gradients):
        """Updates the model's trainable variables and counts the step."""
        # `fit` calls apply_gradients too, so an optimizer may override it.
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))

    def extra_metrics(self, images, labels, logits):
        """Returns a dict of numbers, the metrics of an evaluation beside loss and accuracy. Default: an empty dict.

        Called outside of any graph with NumPy arrays of all examples: uint8 images `[N, 28, 28, 1]`, integer labels
        `[N]`, and the float32 logits `[N, classes]` of `eval_model`. `self.view` describes the run and the data. Each
        key is `epoch/<key>` in TensorBoard, `validation_<key>` in `metrics.jsonl`, `test_<key>` in `results.json`.
        """
        return {}

    def after_evaluation(self, entry):
        """Acts on an evaluation, for example lowers the learning rate. Default: does nothing.

        Called outside of any graph after each evaluation, on every worker. A checkpoint with the variables that it
        changes is saved after it.

        Args:
          entry: a dict with `step`, `train_<metric>` and `validation_<metric>`, as in `metrics.jsonl`.

        Returns: True to end the run here as at its last step, which has no effect at step 0. Else None or False.
        """

    def __call__(self, images, labels):
        """Makes one update from uint8 images `[B, 28, 28, 1]` and integer labels `[B]`.

        Returns: a flat dict of float32 scalars, with the `loss` and the `accuracy` before the update. Each key becomes
          `batch/<key>` and `epoch/<key>` in TensorBoard.
        """
        with tf.name_scope("prepare_batch"):
            images, labels = self.prepare_batch(images, labels)
        gradients, scalars = self.compute_gradients(images, labels)
        self._context.gradients = gradients
        with tf.name_scope("optimizer"):
            self.apply_gradients(gradients)
        return scalars


def _reserved(cls, name):
    return Error(f"{cls.__name__}.{name} replaces an attribute that TrainStep needs: give it another name.")


def _inner(optimizer):
    """Returns the optimizer within a `LossScaleOptimizer`, or else the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _total(loss, others):
    """Returns the sum of a loss and the losses of a model, added in the order that `fit` has."""
    return keras.ops.sum([loss, *(keras.ops.sum(other) for other in others)]) if others else loss
