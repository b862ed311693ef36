"""One update of the weights, in small pieces that research overrides."""

import zlib

from mnist import Error, checkpoint
from mnist.data import epoch_order
from mnist.model import call_to_train, checks, copy_model, count_outputs, scale_images
from mnist.settings import Setting, take
from mnist.step.context import Context

import keras
import tensorflow as tf


class TrainStep(tf.Module):
    """One step of training. Override the smallest piece and call `super()`.

    Whatever a subclass holds in its attributes (`tf.Variable`s, Keras models, layers and
    optimizers) is saved in checkpoints and restored. Its hyperparameters are `Setting`s. A run is not
    resumed with other settings, nor with other numbers or strings in public attributes; a name that begins
    with `_` is exempt.

    Args:
      model: a built `keras.Model` from float32 images `[B, 28, 28, 1]` to logits `[B, classes]`.
      optimizer: a Keras optimizer. As `compile` does, one of a `mixed_float16` model is wrapped to scale its loss.
      seed: seed of every random draw within the step.
      settings: the class's `Setting`s, as keywords; defaults for the others.

    Raises: TypeError for a keyword that is no setting, ValueError for one out of range; `mnist.Error` for a
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
            raise Error(f"--slices={self.slices} is no power of two: 1, 2, 4, 8 and so on are.")
        checks.check_model_and_optimizer(model, optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if model.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.seed = seed
        self._context = Context()  # the code that compiles the step replaces it
        optimizer.build(model.trainable_variables)
        if _inner(optimizer).use_ema:
            self.averaged = copy_model(model)

    @property
    def view(self):
        """The `View` of the run: where the step's own summaries go, and which data and part it is given."""
        return self._context.view

    @property
    def iterations(self):
        """The global step, a `tf.Variable`: batches so far. An optimizer's own `iterations` may count updates."""
        return _inner(self.optimizer).variables[0].value

    @property
    def eval_model(self):
        """The model that is evaluated and exported: a `keras.Model`, the same one at each call.

        With an optimizer that averages (`use_ema`), a copy that has the averages, with which `fit` ends.
        """
        return getattr(self, "averaged", self.model)

    def update_eval_model(self):
        """Brings `eval_model` up to date; called outside of any graph before it is evaluated or saved."""
        if hasattr(self, "averaged"):
            copies = {}
            for copied, variable in zip(self.averaged.variables, self.model.variables, strict=True):
                copied.assign(variable)
                copies[id(variable)] = copied
            inner = _inner(self.optimizer)
            weights = [v.value.numpy() for v in self.model.trainable_variables]
            inner.finalize_variable_values(self.model.trainable_variables)  # Keras keeps the averages to itself
            for variable, value in zip(self.model.trainable_variables, weights, strict=True):
                copies[id(variable)].assign(variable)  # a copy does not know which layers were frozen
                variable.assign(value)

    def random_seed(self, purpose):
        """Seed for a stateless random op: int32 `[2]`, a function of `(seed, step, purpose)`.

        Args:
          purpose: a name. Draws of the same purpose in one step are equal, others independent; within
            `compute_loss` each slice of the batch has its own.
        """
        salt = (zlib.crc32(purpose.encode()) + 0x1E3779B9 * self._context.slice_number) & 0x7FFFFFFF
        step = tf.cast(self.iterations, tf.int32)
        return tf.random.experimental.stateless_fold_in(tf.stack([self.seed, step]), salt)

    def own_variables(self):
        """The `tf.Variable`s that are attributes of the step: what classes keep of the batches.

        Who passes a batch through them twice takes back what the second pass writes.
        """
        return [value for value in vars(self).values() if isinstance(value, tf.Variable)]

    def epoch_order(self, examples, epoch):
        """In which order an epoch goes through the training set.

        Called outside of any graph when the epoch begins, after all updates of the one before: it may look at the
        model and at what the step has learnt. The order is saved, so that a resumed run has the same.

        Args:
          examples: a `data.Examples`: uint8 images `[N, 28, 28, 1]` and labels `[N]`, NumPy arrays.
          epoch: counted from 0.

        Returns: integers `[N]`, indices of examples; some may come twice and others not at all.
        """
        return epoch_order(len(examples.labels), self.seed, epoch)

    def prepare_batch(self, images, labels):
        """Makes of uint8 images `[B, 28, 28, 1]` and integer labels `[B]` what the loss needs.

        Returns: float32 images `[B, 28, 28, 1]` in [0, 1] and one-hot float32 labels `[B, classes]`.
        """
        return scale_images(images), tf.one_hot(labels, count_outputs(self.model))

    def compute_loss(self, images, labels):
        """Runs the model in training mode.

        Returns: the mean loss (a scalar) with the losses of regularizers and `add_loss`, logits `[B, classes]`.
        """
        logits = tf.cast(call_to_train(self.model, images), keras.config.floatx())  # as Keras' losses do
        losses = tf.nn.softmax_cross_entropy_with_logits(labels, logits)  # [B]
        return _total(tf.reduce_mean(losses), self.model.losses), logits

    def compute_gradients(self, images, labels):
        """Returns: gradients, one per trainable variable, and a dict of scalars to be shown.

        A gradient is None where the loss does not depend on the variable. With an optimizer that scales the
        loss, they are those of the scaled loss, as the optimizer takes them. With `slices` the batch is cut into as
        many: `compute_loss` sees one at a time, and all this is the mean.
        """
        variables = list(checkpoint.variables_of(self).values())
        mean, jit_compile = self._context.replicas.mean, self._context.jit_compile
        return mean(self._slice_gradients, self.slices, (images, labels), variables, jit_compile)

    def _slice_gradients(self, images, labels, number):
        kept = {name for name, value in vars(self).items() if tf.is_tensor(value)}
        with self._context.tracing_slice(number):
            with tf.GradientTape() as tape, tf.name_scope("loss"):
                loss, logits = self.compute_loss(images, labels)
                scaled_loss = self.optimizer.scale_loss(loss)
            with tf.name_scope("gradients"):
                gradients = tape.gradient(scaled_loss, [v.value for v in self.model.trainable_variables])
                for gradient, variable in zip(gradients, self.model.trainable_variables, strict=True):
                    if isinstance(gradient, tf.Tensor):  # images of a size unknown to the graph leave the shape open
                        gradient.set_shape(variable.shape)
        if self.slices > 1:  # a tensor that compute_loss keeps is of one slice: nobody shall take it for the batch's
            for name in [name for name, value in vars(self).items() if tf.is_tensor(value) and name not in kept]:
                delattr(self, name)
        with tf.name_scope("metrics"):
            correct = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
            accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
        return gradients, {"loss": loss, "accuracy": accuracy}

    def apply_gradients(self, gradients):
        """Updates the model's trainable variables and counts the step."""
        # What `fit` calls, and so what an optimizer of one's own may override.
        self.optimizer.apply_gradients(zip(gradients, self.model.trainable_variables, strict=True))

    def extra_metrics(self, images, labels, logits):
        """Metrics of an evaluation beside loss and accuracy, none unless a subclass has some.

        Called outside of any graph with NumPy arrays of all examples: uint8 `[N, 28, 28, 1]`, `[N]`, and what
        `eval_model` answers, float32 `[N, classes]`. `self.view` tells of which data and run they are.

        Returns: a dict of numbers. Each key becomes `epoch/<key>` in TensorBoard, `validation_<key>` in
        `metrics.jsonl`, and `test_<key>` in `results.json`; mnist.evaluate shows it.
        """
        return {}

    def __call__(self, images, labels):
        """One update from a batch of uint8 images `[B, 28, 28, 1]` and integer labels `[B]`.

        Returns: a flat dict of float32 scalars, `loss` and `accuracy` (before the update) among
        them. Each key becomes `batch/<key>` and `epoch/<key>` in TensorBoard.
        """
        with tf.name_scope("prepare_batch"):
            images, labels = self.prepare_batch(images, labels)
        gradients, scalars = self.compute_gradients(images, labels)
        self._context.gradients = gradients
        with tf.name_scope("optimizer"):
            self.apply_gradients(gradients)
        return scalars


def _inner(optimizer):
    """The optimizer within a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _total(loss, others):
    """The sum of a loss and of a model's own, added up as `fit` adds them."""
    return keras.ops.sum([loss, *(keras.ops.sum(other) for other in others)]) if others else loss
