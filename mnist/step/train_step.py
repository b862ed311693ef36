"""One update of the weights, in small pieces that research overrides."""

import contextlib
import functools
import inspect
import numbers
import operator
import zlib

from mnist import Error, checkpoint
from mnist.data import epoch_order
from mnist.model import call_to_train, checks, count_outputs, scale_images
from mnist.settings import Setting, check_own_settings, settings_of, take
from mnist.step import returns
from mnist.step.averaged_model import AveragedModel
from mnist.step.context import Context

import keras
import tensorflow as tf
from tensorflow.python.framework import ops  # no public name lists the registered gradients

_not_converted = tf.autograph.experimental.do_not_convert  # saves time where there is nothing to convert
# Attributes of TrainStep that no subclass may replace.
_PRIVATE = ("_averaging", "_context", "_given", "_state", "_slice_gradients")
_RESERVED = ("averaged", "iterations", "model", "optimizer", "seed", "state", "view", *_PRIVATE)
NOT_A_DISTRIBUTION = (
    "prepare_batch gave rows of labels that do not sum to 1, for which TensorFlow computes a wrong gradient of the "
    "cross-entropy: weight the losses in compute_loss instead."
)
NORM_OVERFLOWS = "the square of a norm overflows, so that --clipnorm makes zeros of the gradient of"


class _Constructing(type):
    """The class of `TrainStep`, which completes a step once the constructor of its own class has returned."""

    def __call__(cls, *args, **kwargs):
        try:
            inspect.signature(cls.__init__).bind(None, *args, **kwargs)
        except TypeError as error:
            raise _wrong_constructor(cls, str(error)) from None
        step = super().__call__(*args, **kwargs)
        step._complete(kwargs)
        return step


class TrainStep(tf.Module, metaclass=_Constructing):
    """One step of training. Override the smallest method that suffices, and call `super()`.

    Checkpoints save every `tf.Variable`, Keras model, layer and optimizer in the attributes of a subclass, and `state`.
    Its hyperparameters are `Setting`s. A resume is refused if settings or public attributes differ, or if code or a
    value does that `epoch_order` or `extra_metrics` reads. All else in attributes must stay as `__init__` left it,
    except a `functools.cached_property`, for what follows from the settings, and tensors of the graph.

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
    # Whether compute_gradients returns the gradients of the loss. A subclass sets False if it changes them on purpose,
    # as by clipping, noise, a stopped perturbation or a straight-through estimator. `--check_step` does not judge them.
    exact_gradients = True

    def __init__(self, model, optimizer, *, seed=0, **settings):
        super().__init__(name="train_step")
        if not isinstance(seed, numbers.Integral) or not 0 <= seed < 2**31:
            raise ValueError(f"seed is {seed!r}, expected an integer from 0 to {2**31 - 1}")
        self._given = {"seed": seed, **settings}
        take(self, settings)
        if self.slices & (self.slices - 1):
            raise Error(f"--slices={self.slices} is not a power of two: expected 1, 2, 4, 8 and so on.")
        checks.check_model_and_optimizer(model, optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if model.dtype_policy.name == "mixed_float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        self.model = model
        self.optimizer = optimizer
        self.seed = int(seed)
        updates = _inner(optimizer).variables[0].value  # an optimizer that has trained counts on
        self.iterations = tf.Variable(updates, trainable=False, name="iterations")
        vars(self)["_state"] = {}  # tf.Module would wrap it
        self._context = Context()  # the code that compiles the step replaces it
        self._averaging = AveragedModel(model, _inner(optimizer)) if _inner(optimizer).use_ema else None
        self.averaged = self._averaging and self._averaging.model  # checkpoints name its variables after the attribute

    def _complete(self, given):
        """Builds the optimizer, once a subclass has made its layers. `given` are the keywords of the constructor."""
        cls = type(self)
        if "averaged" not in vars(self):
            raise _wrong_constructor(cls, "does not call super().__init__()")
        for name in given.keys() & {"seed", *settings_of(cls)}:
            if name not in self._given or (name == "seed" and given[name] != self.seed):
                raise _wrong_constructor(cls, f"does not pass on {name!r}")
        trained = self.trained_variables()
        returns.check_trained(cls, trained)
        inner = _inner(self.optimizer)
        known = getattr(inner, "_trainable_variables", [])
        if inner.built and [id(v) for v in known] != [id(v) for v in trained]:
            raise Error(f"the {type(inner).__name__} was built for the variables of another model: make a new one.")
        self.optimizer.build(trained)
        del self._given

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in _RESERVED:
            if getattr(cls, name, None) is not getattr(TrainStep, name, None):
                raise _reserved(cls, name)
        check_own_settings(cls, TrainStep)

    def __setattr__(self, name, value):
        if (
            name in _RESERVED
            and (name in vars(self) or isinstance(getattr(type(self), name, None), property))
            and not (name == "_context" and isinstance(value, Context))
        ):
            raise _reserved(type(self), name)
        super().__setattr__(name, value)

    @property
    def state(self):
        """The plain state of hooks, a dict that `__init__` fills and checkpoints save.

        It holds numbers, texts, booleans, None, lists, dicts, arrays of NumPy and `np.random.Generator`s. Raises:
        `mnist.Error` in a graph, which would keep the value that it had when it was traced.
        """
        if tf.inside_function():
            raise Error(
                f"{type(self).__name__} reads self.state in a graph, which would keep its value: use a tf.Variable."
            )
        return self._state

    @property
    def view(self):
        """The `View` of the run: its folder, its data, and when the step's own summaries are written."""
        return self._context.view

    @_not_converted
    def trained_variables(self):
        """Returns the variables that the step trains, a list of Keras variables and `tf.Variable`s.

        Default: the trainable variables of the model. Gradients have this order. A subclass adds the variables of
        layers that it has made in `__init__`, and that are built: `[*super().trained_variables(),
        *self.head.trainable_variables]`.
        """
        return self.model.trainable_variables

    @property
    def eval_model(self):
        """The `keras.Model` that is evaluated and exported, always the same object. With `use_ema` it is a copy."""
        return self.model if self.averaged is None else self.averaged

    def update_eval_model(self):
        """Updates `eval_model`, called outside of any graph before the model is evaluated or saved."""
        if self._averaging:
            self._averaging.update([_as_variable(v) for v in self.trained_variables()])

    def random_seed(self, purpose):
        """Returns a seed for a stateless random op, int32 `[2]`, a function of `(seed, step, purpose)`.

        Draws of one step with the same purpose, a string, are equal. Within `compute_loss` each slice has its own seed.
        """
        self._context.draws += 1
        salt = (zlib.crc32(purpose.encode()) + 0x1E3779B9 * self._context.slice_number) & 0x7FFFFFFF
        step = tf.cast(self.iterations, tf.int32)
        return tf.random.experimental.stateless_fold_in(tf.stack([self.seed, step]), salt)

    def own_variables(self):
        """Returns the `tf.Variable`s that are attributes, for code that undoes what a second pass writes."""
        values = vars(self).values()
        return [value for value in values if isinstance(value, tf.Variable) and value is not self.iterations]

    def training_set(self, images, labels):
        """Returns what the step trains on, called once in plain Python before the first epoch.

        Must depend on nothing but its arguments, the settings and the seed, because a resumed run calls it again. It
        does not change the data of evaluations.

        Args:
          images: uint8 `[N, 28, 28, 1]`, a read-only NumPy array.
          labels: integers `[N]`, a read-only NumPy array.

        Returns: images and labels of the same shapes, and any number of further arrays `[N, ...]`. The rows of these
          arrays travel with each image, and `prepare_batch` gets them after the labels, float64 as float32.
        """
        return images, labels

    def epoch_order(self, examples, epoch):
        """Returns the order in which an epoch goes through the training set, integers `[N]`.

        Called outside of any graph when the epoch begins, so that it may depend on the variables of the step.
        Checkpoints save the order. An example may come twice or not at all.

        Args:
          examples: a `data.Examples`. Uint8 images `[N, 28, 28, 1]` and integer labels `[N]`, NumPy arrays, as
            `training_set` returned them.
          epoch: an int, counted from 0.
        """
        return epoch_order(len(examples.labels), self.seed, epoch)

    def prepare_batch(self, images, labels, *more):
        """Converts a batch for the loss.

        Args:
          images: uint8 `[B, 28, 28, 1]`.
          labels: integers `[B]`.
          more: the rows `[B, ...]` of further arrays that `training_set` returned. Default: none.

        Returns: float32 images `[B, 28, 28, 1]` in [0, 1], one-hot float32 labels `[B, classes]`, and any number of
          further tensors `[B, ...]`, which `compute_gradients` and `compute_loss` get after the labels. The loss of
          this class takes labels whose rows sum to 1. Another `compute_loss` may take any.
        """
        return scale_images(images), tf.one_hot(labels, count_outputs(self.model)), *more

    def compute_loss(self, images, labels):
        """Runs the model in training mode on what `prepare_batch` returned.

        Returns: the mean loss with the losses of regularizers and `add_loss`, a scalar, and logits `[B, classes]`. A
          subclass may return a dict of several losses in place of one. Each is shown under its name, and
          `combine_gradients` gets the gradients of each.
        """
        logits = tf.cast(call_to_train(self.model, images), keras.config.floatx())  # as Keras' losses do
        labels = tf.convert_to_tensor(labels)
        if not labels.shape.is_compatible_with(logits.shape):
            shapes = f"labels {list(labels.shape)}, expected {[None, logits.shape[-1]]}"
            raise Error(f"prepare_batch of {type(self).__name__} gave {shapes}: override compute_loss for others.")
        if self._may_change_labels():
            is_one = tf.abs(tf.reduce_sum(tf.cast(labels, tf.float32), axis=1) - 1) < 1e-2  # [B]
            tf.debugging.Assert(tf.reduce_all(is_one), [NOT_A_DISTRIBUTION])
        losses = tf.nn.softmax_cross_entropy_with_logits(labels, logits)  # [B]
        return self.add_losses(tf.reduce_mean(losses)), logits

    @_not_converted
    def add_losses(self, loss):
        """Adds the losses of the model's regularizers and of `add_loss` to a scalar loss.

        A `compute_loss` that does not call `super()` calls this method once. Returns: a scalar.
        """
        self._context.has_losses = True
        return _total(loss, self.model.losses)

    @_not_converted
    def _may_change_labels(self):
        """Returns whether labels may be other than one-hot, so that the graph of a plain step checks nothing."""
        names = ("__call__", "prepare_batch", "compute_gradients", "compute_loss")
        return any(getattr(type(self), name) is not getattr(TrainStep, name) for name in names)

    def compute_gradients(self, images, labels, *more):
        """Computes means over the batch. With `slices` it calls `compute_loss` with one part of the batch at a time.

        Takes what `prepare_batch` returned.

        Returns: one gradient per trained variable, None if the loss does not depend on it, and a dict of scalars to
          show. If the optimizer scales the loss, the gradients belong to the scaled loss.
        """
        variables = list(checkpoint.variables_of(self).values())
        context = self._context
        context.draws = 0
        gradients, scalars = context.replicas.mean(
            self._slice_gradients, self.slices, (images, labels, *more), variables, context.jit_compile
        )
        if isinstance(gradients, dict):
            gradients = self.combine_gradients(gradients)
            returns.check_count(self, "combine_gradients returned", gradients)
        return gradients, scalars

    def combine_gradients(self, gradients):
        """Combines the gradients of several losses. Called only if `compute_loss` returns a dict.

        Args:
          gradients: a dict from the name of each loss to its list of gradients, means over the whole batch. Each list
            has the order of `trained_variables`, with None where the loss does not depend on the variable.

        Returns: one list of gradients. Default: the sums.
        """
        return [functools.reduce(_add, parts) for parts in zip(*gradients.values(), strict=True)]

    def _slice_gradients(self, images, labels, *rest):
        *more, number = rest
        before, context = dict(vars(self)), self._context
        batch = (images, labels, *more)
        returns.check_takes(self, "compute_loss", batch)
        trained = [_as_variable(v) for v in self.trained_variables()]
        with context.tracing_slice(self, number):
            # Outside of a graph a tape has to be persistent if there are several losses.
            with tf.GradientTape(persistent=tf.executing_eagerly()) as tape, tf.name_scope("loss"):
                losses, logits = returns.check_loss(self, self.compute_loss(*batch))
                scaled = tf.nest.map_structure(self.optimizer.scale_loss, losses)
            if len(self.trained_variables()) != len(trained):
                raise Error(
                    f"trained_variables of {type(self).__name__} has more variables once the loss has run: build its "
                    "layers in __init__, as in self.head.build([None, 10])."
                )
            others = context.watched_others(tape, trained)
            with tf.name_scope("gradients"):
                if isinstance(losses, dict):
                    # A persistent tape would change the graph of a step with one loss, which comes this way, too.
                    differentiate = tape.gradient if tf.executing_eagerly() else tf.gradients
                    parts = {name: differentiate(loss, [*trained, *others]) for name, loss in scaled.items()}
                    gradients = {name: context.take_others(part, others) for name, part in parts.items()}
                else:
                    gradients = context.take_others(tape.gradient(scaled, [*trained, *others]), others)
                for part in gradients.values() if isinstance(gradients, dict) else [gradients]:
                    for gradient, variable in zip(part, trained, strict=True):
                        if isinstance(gradient, tf.Tensor):  # images of a size unknown to the graph leave it open
                            gradient.set_shape(variable.shape)
        if self.slices > 1:  # a tensor that compute_loss kept has one slice, not the whole batch
            kept = [name for name, x in vars(self).items() if tf.is_tensor(x) and x is not before.get(name)]
            for name in kept:
                delattr(self, name)
                vars(self).update({name: before[name]} if name in before else {})
        with tf.name_scope("metrics"):
            correct = tf.equal(tf.argmax(logits, 1), returns.classes_of(self, labels, logits))
            accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
        if isinstance(losses, dict):
            return gradients, {"loss": functools.reduce(operator.add, losses.values()), "accuracy": accuracy, **losses}
        return gradients, {"loss": losses, "accuracy": accuracy}

    def apply_gradients(self, gradients):
        """Updates the trained variables. Takes one gradient for each.

        None leaves a variable as it is, for example one that another optimizer updates.
        """
        variables = self.trained_variables()
        returns.check_count(self, "apply_gradients got", gradients)
        pairs = list(zip(gradients, variables, strict=True))
        if self.optimizer.clipnorm:
            for gradient, variable in pairs:
                _check_norm(gradient, variable)
        inner = {id(variable) for variable in self.model.trainable_variables}
        # Keras would warn of each None. `fit` calls apply_gradients too, so an optimizer may override it.
        with _without_traces():
            self.optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None or id(v) in inner])

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

    def __call__(self, images, labels, *more):
        """Makes one update from uint8 images `[B, 28, 28, 1]`, integer labels `[B]`, and rows of `training_set`.

        Returns: a flat dict of float32 scalars, with the `loss` and the `accuracy` before the update. Each key becomes
          `batch/<key>` and `epoch/<key>` in TensorBoard.
        """
        batch = (images, labels, *more)
        returns.check_takes(self, "prepare_batch", batch)
        with tf.name_scope("prepare_batch"):
            batch = returns.check_batch(self, self.prepare_batch(*batch))
        gradients, scalars = returns.check_gradients(self, self.compute_gradients(*batch))
        self._context.gradients = gradients
        with tf.name_scope("optimizer"):
            self.apply_gradients(gradients)
        self.iterations.assign_add(1)
        return scalars


@contextlib.contextmanager
def _without_traces():
    """Removes the gradients that TensorFlow registers for an update, which nothing differentiates.

    Each would keep the graph of the step in memory for ever (tensorflow/tensorflow#97697).
    """
    registered = ops.gradient_registry._registry
    before = {*registered}
    yield
    for name in [name for name in registered if name.startswith("CustomGradient-") and name not in before]:
        del registered[name]


@_not_converted
def _as_variable(variable):
    """Returns the `tf.Variable` of a Keras variable, or else the variable itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


@_not_converted
def _check_norm(gradient, variable):
    """Makes the graph fail if a finite gradient has a norm that overflows. Clipping would return zeros for it."""
    if gradient is not None:
        gradient = tf.convert_to_tensor(gradient)
        clips = tf.math.is_finite(tf.reduce_sum(tf.square(gradient))) | ~tf.reduce_all(tf.math.is_finite(gradient))
        tf.debugging.Assert(clips, [f"{NORM_OVERFLOWS} {getattr(variable, 'path', variable.name)}"])


def _add(one, other):
    if one is None or other is None:
        return other if one is None else one
    return tf.convert_to_tensor(one) + tf.convert_to_tensor(other)


def _wrong_constructor(cls, found):
    return Error(
        f"{cls.__name__}.__init__ {found}. Write it as def __init__(self, model, optimizer, **settings), and call "
        "super().__init__(model, optimizer, **settings) in it."
    )


def _reserved(cls, name):
    hint = "fill the dict, as in self.state['count'] = 0" if name == "state" else "give it another name"
    return Error(f"{cls.__name__}.{name} replaces an attribute that TrainStep needs: {hint}.")


def _inner(optimizer):
    """Returns the optimizer within a `LossScaleOptimizer`, or else the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@_not_converted
def _total(loss, others):
    """Returns the sum of a loss and the losses of a model, added in the order that `fit` has."""
    others = [keras.ops.cast(keras.ops.sum(other), loss.dtype) for other in others]
    return keras.ops.sum([loss, *others]) if others else loss
