"""Looking at a step from within: norms and histograms of some steps, and what research writes with `tf.summary`."""

import collections
import contextlib
import math

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
      is_silent: whether nothing is seen: of a shared run all take the same steps by themselves, for the collectives
        of a loop meet those of the same loop alone, and the chief sees them.

    Attributes:
      workdir, dataset: as given.
      writer: of `tf.summary`, for what a step writes that is traced now; None: nothing.
      part: "train"; in `extra_metrics` "validation" or "test", whichever images it is given.
    """

    def __init__(self, workdir=None, dataset=None, norms_every=0, histograms_every=0, is_silent=False):
        self.workdir, self.dataset, self.part = workdir, dataset, "train"
        self._norms_every, self._histograms_every, self.writer = norms_every, histograms_every, None
        self._is_silent = is_silent
        self._records = True
        self._seen = []

    @contextlib.contextmanager
    def every(self, steps):
        """While entered in a method of the step, `tf.summary` writes at each `steps`-th step, under names as given.

        In `extra_metrics` it writes at each evaluation.
        """
        number = tf.summary.experimental.get_step()
        with contextlib.ExitStack() as stack:
            if number is not None and self.part == "train":
                stack.enter_context(tf.summary.record_if(tf.equal(number % steps, 0) if self._records else False))
                stack.enter_context(tf.name_scope("/"))  # else the scopes of the graph would come before the name
            yield

    @contextlib.contextmanager
    def recording(self, records):
        """Sets whether what is traced is recorded, also where it asks for it with `every`."""
        before, self._records = self._records, records
        with contextlib.nullcontext() if records else tf.summary.record_if(False):
            yield
        self._records = before

    @contextlib.contextmanager
    def writing(self, iterations):
        """Around a step that is traced: what it writes has the number of the step, counted from 1."""
        if self.writer is None:
            yield
            return
        number = tf.cast(iterations, tf.int64) + 1
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

    def next_look(self, number):
        """The first step from `number` on that is looked at; infinity if none is."""
        return min((-(-number // n) * n for n in (self._norms_every, self._histograms_every) if n), default=math.inf)

    def look(self, step, number, take_step):
        """Takes step `number` and looks at it: what is seen is in what `take` returns.

        Args:
          step: a `TrainStep`.
          take_step: called for the step; returns its scalars and its gradients, as of `compile_step`.

        Returns: the scalars.
        """
        if self._is_silent:
            return take_step()[0]
        variables = [variable.value for variable in step.model.trainable_variables]
        before = list(map(_to_floats, variables))
        scale = np.float32(step.optimizer.scale_loss(1.0))
        scalars, gradients = take_step()
        after = list(map(_to_floats, variables))
        known = {i: _to_floats(tf.convert_to_tensor(g)) / scale for i, g in enumerate(gradients) if g is not None}
        self._seen.append((number, *self._measure(number, names_of(step.model), before, after, known)))
        return scalars

    def _measure(self, number, names, before, after, gradients):
        """Scalars and histograms of a step; `names` of layers and their variables, gradients by position."""
        scalars, values = {}, {}
        if self._norms_every and number % self._norms_every == 0:
            moves = [square(y - x) for x, y in zip(before, after, strict=True)]
            parts = list(zip(map(square, before), map(square, after), moves, strict=True))
            layers = {}
            for i, (layer, _) in enumerate(names):
                layers.setdefault(layer, []).append(i)
            squares = {i: square(gradient) for i, gradient in gradients.items()}
            for layer, places in [*layers.items(), ("all layers", range(len(names)))]:
                old, new, move = np.sqrt([sum(parts[i][k] for i in places) for k in range(3)])
                scalars[f"weights/{layer}"] = new
                if old:
                    scalars[f"updates/{layer}"] = move / old
                if found := [squares[i] for i in places if i in squares]:
                    scalars[f"gradients/{layer}"] = np.sqrt(sum(found))
        if self._histograms_every and number % self._histograms_every == 0:
            for i, (layer, name) in enumerate(names):
                values[f"weights/{layer}/{name}"] = counts(after[i])
                if i in gradients:
                    values[f"gradients/{layer}/{name}"] = counts(gradients[i])
        return scalars, values

    def take(self):
        """What was seen since it was last asked: a list of a step, a dict of scalars and one of histograms."""
        seen, self._seen = self._seen, []
        return seen


def _to_floats(tensor):
    """A copy of a tensor's or a variable's value, float32."""
    return np.array(tensor.numpy(), np.float32)


def square(array):
    """The sum of squares, added up in float64."""
    return float(np.square(array, dtype=np.float64).sum())


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
