"""Looking at a step from within: norms and histograms of some steps, and what research writes with `tf.summary`."""

import collections
import contextlib

import numpy as np
import tensorflow as tf


class View:
    """What is looked at, and where `tf.summary` writes it; a `TrainStep` has one as `view`.

    In a run `tf.summary` writes from within the step's methods every `norms_every` steps, and from `extra_metrics` at
    each evaluation. Outside of a run, and in a process of a shared run that is not the chief, it writes nothing.

    Args:
      workdir: the run's folder as it was given; None outside of a run.
      dataset: the run's `data.Dataset`; None outside of a run.
      norms_every, histograms_every: steps between those that are looked at; 0: none.

    Attributes:
      workdir, dataset: as given.
      writer: of `tf.summary`, for what a step writes that is traced now; None: nothing.
      part: "train"; in `extra_metrics` "validation" or "test", whichever images it is given.
    """

    def __init__(self, workdir=None, dataset=None, norms_every=0, histograms_every=0):
        self.workdir, self.dataset, self.part = workdir, dataset, "train"
        self._norms_every, self._histograms_every, self.writer = norms_every, histograms_every, None
        self.gradients = []  # of the step that is being traced
        self._is_first = True  # of the slices of a batch, the one that is being traced
        self._seen = []

    @contextlib.contextmanager
    def every(self, steps):
        """While entered in a method of the step, `tf.summary` writes at each `steps`-th step, under names as given.

        In `extra_metrics` it writes at each evaluation.
        """
        number = tf.summary.experimental.get_step()
        with contextlib.ExitStack() as stack:
            if number is not None and self.part == "train":
                stack.enter_context(tf.summary.record_if(tf.equal(number % steps, 0) if self._is_first else False))
                stack.enter_context(tf.name_scope("/"))  # else the scopes of the graph would come before the name
            yield

    @contextlib.contextmanager
    def of_slice(self, number):
        """Around what is computed of a slice: of all slices the first, 0, is shown."""
        self._is_first = not number
        with contextlib.nullcontext() if self._is_first else tf.summary.record_if(False):
            yield
        self._is_first = True

    @contextlib.contextmanager
    def writing(self, step):
        """Around a step that is traced: what it writes has the number of the step, counted from 1."""
        self.gradients = []
        if self.writer is None:
            yield
            return
        number = tf.cast(step.iterations, tf.int64) + 1
        due = tf.equal(number % self._norms_every, 0) if self._norms_every else False
        self.writer.flush = lambda: None  # of the instance: the graph would flush at each step
        try:
            with self.writer.as_default(number), tf.summary.record_if(due):
                yield
        finally:
            del self.writer.flush

    def is_written(self, function):
        """Whether a concrete function of the step writes with `tf.summary`."""
        return self.writer is not None and any(x is self.writer._resource for x, _ in function.graph.captures)

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes 50 ms
    def before(self, step):
        """In the graph, before an update. Returns: for `after`; the trainable variables if the step is looked at."""
        periods = [n for n in (self._norms_every, self._histograms_every) if n]
        if not periods:
            return None
        variables = [variable.value for variable in step.model.trainable_variables]
        number = tf.cast(step.iterations, tf.int64) + 1
        due = tf.reduce_any([tf.equal(number % n, 0) for n in periods])
        values = tf.cond(
            due,
            lambda: [tf.identity(variable) for variable in variables],
            lambda: [tf.zeros([0], variable.dtype) for variable in variables],
        )
        return number, due, values

    @tf.autograph.experimental.do_not_convert
    def after(self, step, before, gradients):
        """In the graph, after an update: what `take` returns is computed, if the step is looked at.

        Args:
          before: what `before` returned.
          gradients: those of the update, None for a variable without.
        """
        if before is None:
            return
        number, due, values = before
        variables = [variable.value for variable in step.model.trainable_variables]
        names = names_of(step.model)
        known = [i for i, gradient in enumerate(gradients) if gradient is not None]

        def in_numpy(number, scale, *arrays):
            n = len(variables)
            own = {i: array / scale for i, array in zip(known, arrays[2 * n :], strict=True)}
            self._look(int(number), names, arrays[:n], arrays[n : 2 * n], own)

        def look():
            scale = tf.cast(step.optimizer.scale_loss(1.0), tf.float32)
            shown = [tf.convert_to_tensor(gradients[i]) for i in known]
            tensors = [tf.cast(x, tf.float32) for x in [*values, *variables, *shown]]
            with tf.control_dependencies([tf.numpy_function(in_numpy, [number, scale, *tensors], [])]):
                return tf.constant(True)

        tf.cond(due, look, lambda: tf.constant(False))

    def _look(self, number, names, before, after, gradients):
        """In Python, of one step: `names` of layers and their variables; arrays; gradients by position."""
        scalars, values = {}, {}
        if self._norms_every and number % self._norms_every == 0:
            layers = {}
            for i, (layer, _) in enumerate(names):
                layers.setdefault(layer, []).append(i)
            moves = [y - x for x, y in zip(before, after, strict=True)]
            for layer, places in [*layers.items(), ("all layers", range(len(names)))]:
                weights, update = (norm([arrays[i] for i in places]) for arrays in (before, moves))
                if found := [gradients[i] for i in places if i in gradients]:
                    scalars[f"gradients/{layer}"] = norm(found)
                scalars[f"weights/{layer}"] = norm([after[i] for i in places])
                if weights:
                    scalars[f"updates/{layer}"] = update / weights
        if self._histograms_every and number % self._histograms_every == 0:
            for i, (layer, name) in enumerate(names):
                values[f"weights/{layer}/{name}"] = counts(after[i])
                if i in gradients:
                    values[f"gradients/{layer}/{name}"] = counts(gradients[i])
        self._seen.append((number, scalars, values))

    def take(self):
        """What was seen since it was last asked: a list of a step, a dict of scalars and one of histograms."""
        seen, self._seen = self._seen, []
        return seen


def norm(arrays):
    """The norm of all arrays together, a float; summed in float64."""
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))


def counts(array, bins=30):
    """A histogram of what is finite: float64 `[bins, 3]`, the edges of each bin and how many there are in it."""
    array = array[np.isfinite(array)].astype(np.float64)
    low, high = (array.min(), array.max()) if array.size else (0.0, 0.0)
    if not (np.diff(np.linspace(low, high, bins + 1)) > 0).all():  # too near to each other to tell apart
        margin = max(1e-6, 1e-6 * abs(low))
        low, high = low - margin, high + margin
    numbers, edges = np.histogram(array, bins, (low, high))
    return np.stack([edges[:-1], edges[1:], numbers], axis=1)


def names_of(model):
    """The layer and the name of each trainable variable, `("conv1", "kernel")`, no two the same."""
    names, times = [], collections.Counter()
    for variable in model.trainable_variables:
        *layers, name = variable.path.split("/")
        layer = "/".join(layers[1:] if layers[:1] == [model.name] and layers[1:] else layers) or name
        times[layer, name] += 1
        names.append((layer if times[layer, name] == 1 else f"{layer}_{times[layer, name]}", name))
    return names
