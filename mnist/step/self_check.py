"""Judges a compiled step before it trains: by its code in eager mode, and its gradients by the loss itself.

A run that repeats the bits of `fit` repeats its faults, too. TensorFlow's graph optimizer replaces operations by
others, bfloat16 loses small terms of a sum, and a `tf.custom_gradient` returns what its author wrote.
"""

import collections
import contextlib
import copy
import io
import random

from mnist import Error, checkpoint
from mnist.checkpoint.comparable import attributes_of, is_own
from mnist.step.context import Context

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.ops import gen_stateless_random_ops_v2 as draws  # all public names of draws call it

_METHODS = ("prepare_batch", "compute_loss", "compute_gradients", "apply_gradients")
_INSIST = "--check_step=false insists."
# The largest errors that rounding explains, in float32 or more, and in 16 bits. The first are relative to a gradient.
# The second are relative to the largest one, because a small gradient may be the rest of terms that cancel.
_ROUNDING, _ROUNDING_16 = 0.01, 0.5
_CANCELLED, _CANCELLED_16 = 1e-5, 2**-6
# Steps of the differences, relative to the weights: without and with float64. Kinks need small ones, rounding large.
_STEPS, _STEPS_64 = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-6, 4e-6, 1e-4, 4e-4)
_DIRECTIONS, _MORE_DIRECTIONS = 2, 8


def check_compiled(step, context, function, batches):
    """Compares the compiled update of a step with what it should be. Everything is as before afterwards.

    It judges at weights near the initial ones, because zeros hide faults and lie on kinks.

    1. The same code in eager mode has to give the same loss, gradients and variables after the update.
    2. Along random directions the loss has to change as the gradients predict. Both are computed in float64 if the
       code permits. A class with `exact_gradients = False` leaves out this part and the next.
    3. The compiled gradients have to equal the gradients in float64, up to rounding. In 16 bits this judges vectors
       alone, such as biases, whose long sums stop growing.

    Args:
      step: a `TrainStep`.
      context: the `Context` of the run. Each of its processes judges alone, and all raise the first error.
      function: the concrete function of one step, without collectives.
      batches: lists of the tensors of a batch. A later one is used if the step cannot take those before.

    Returns: a text with the reason why the step could not be judged, or "".
    Raises: `mnist.Error` that names the method or the variable that is wrong.
    """
    cluster, refusal, reason = context.replicas.cluster, "", ""
    for batch in batches:
        trial = _Trial(step, function, batch, context.view)
        with _undone(step, trial.variables):
            try:
                refusal, reason = trial.judge(), ""
                break
            except _Unable as error:
                reason = str(error)
    refusals = [text for text in cluster.agree(refusal, cluster.timeout) if text]
    if refusals:
        raise Error(refusals[0])
    return reason and f"the step of {type(step).__name__} is not checked before training: {reason}."


class _Unable(Exception):
    """The reason why a step cannot be judged."""


class _Trial:
    def __init__(self, step, function, batch, view):
        self.step, self.function, self.batch, self.view = step, function, batch, view
        self.name = type(step).__name__
        held = checkpoint.variables_of(step)
        self.variables = list(held.values())
        trained = [v.value if isinstance(v, keras.Variable) else v for v in step.trained_variables()]
        names = {id(variable): name for name, variable in held.items()}
        paths = [getattr(v, "path", v.name) for v in step.trained_variables()]
        self.names = [f"{names[id(v)]} ({path})" for v, path in zip(trained, paths, strict=True)]
        self.trained = trained
        known = {id(v) for v in [*trained, *(v.value for v in step.optimizer.variables)]}
        written = checkpoint.written_variables(function.graph, self.variables)
        self.others = [(v, tf.identity(v)) for v in written if id(v) not in known]
        dtypes = {layer.compute_dtype for layer in _layers(step)} & {"bfloat16", "float16"}
        self.dtype = min(dtypes, default=step.model.compute_dtype)
        self.rounding = _ROUNDING_16 if dtypes else _ROUNDING
        self.cancelled = _CANCELLED_16 if dtypes else _CANCELLED
        self.same_loss = 0.03 if dtypes else 1e-5
        self.random, self.prepared = np.random.default_rng(0), None
        self.is_comparable = not _draws_in_xla(function)  # which draws other numbers

    def judge(self):
        """Returns the refusal, or ""."""
        self.start = self._start()
        loss, gradients, after = self._compiled()
        with _eagerly(self.step, self.view):
            refusal, eager = self._compare_with_eager(loss, gradients, after)
            if refusal and self.rounding == _ROUNDING:
                return refusal
            if not self.step.exact_gradients:
                return refusal
            self.prepared = self._prepare()
            try:
                with _in_float64(self.step, self.dtype):
                    exact = self._gradients()
                    self.reset()
                    exact_loss = self.loss()
                    other = self._compare_with_differences(exact, True)
            except Exception:  # of code that has float32 in it
                return refusal or self._compare_with_differences(self._gradients(), False)
            # The eager gradients decide whether the graph or the dtype is wrong.
            return (
                other or self._compare_with_float64(loss, eager if refusal else gradients, exact_loss, exact) or refusal
            )

    def _start(self):
        """Moves the trained variables a little. Returns: the values of all variables, with which each pass begins."""
        initial = [tf.identity(v) for v in self.variables]
        for variable in self.trained:
            if variable.dtype.is_floating:
                noise = self.random.uniform(-0.1, 0.1, variable.shape)
                variable.assign_add(tf.constant(noise * _size(variable), variable.dtype))
        moved = [tf.identity(v) for v in self.variables]
        for self.start in (moved, initial):
            if all(np.isfinite(x).all() for x in _floats(self._compiled()[:2])):
                return self.start
        raise _Unable("its loss or its gradients are not finite")

    def _prepare(self):
        """Returns what `prepare_batch` returned, or None if it depends on the trained variables."""
        found = []
        for size in (0.0, 0.1):
            self.reset()
            for variable in self.trained:
                variable.assign_add(tf.cast(size, variable.dtype) * tf.ones_like(variable))
            found.append(self.step.prepare_batch(*self.batch))
        is_same = all(np.array_equal(x, y) for x, y in zip(*map(tf.nest.flatten, found), strict=True))
        return found[0] if is_same else None

    def _place(self, variable):
        return next(i for i, v in enumerate(self.variables) if v is variable)

    def reset(self):
        for variable, value in zip(self.variables, self.start, strict=True):
            variable.assign(value)

    def _compiled(self):
        self.reset()
        try:
            scalars, gradients = self.function(*self.batch)
        except tf.errors.OpError:
            raise _Unable("") from None  # the first step of the training will say it
        return scalars["loss"], gradients, [tf.identity(v) for v in self.variables]

    # 1. In eager mode.

    def _compare_with_eager(self, loss, gradients, after):
        """Returns a refusal, or "", and the gradients in eager mode."""
        found = []

        def compute_gradients(*batch):
            found.append(type(self.step).compute_gradients(self.step, *batch))
            return gradients, found[-1][1]  # Adam would make much of the last bits of others

        self.reset()
        vars(self.step)["compute_gradients"] = compute_gradients
        try:
            scalars = self.step(*self.batch)
        except Exception as error:  # of any code that expects a graph
            text = " ".join(str(error).split())
            raise _Unable(f"it does not run in eager mode ({type(error).__name__}: {text:.100})") from None
        finally:
            del vars(self.step)["compute_gradients"]
        eager = found[0][0] if found else gradients
        if not self.is_comparable:
            return "", eager
        wrong = [("loss", loss, scalars["loss"])] if self._differs(loss, scalars["loss"]) else []
        if len(found) == 1:
            states = [tf.identity(v) for v in self.variables]  # before _wrong resets them
            wrong = wrong or self._wrong(gradients, eager)
            slots = {id(v.value) for v in self.step.optimizer.variables}  # some divide by the rate what cancels
            for variable, value, state, old in zip(self.variables, after, states, self.start, strict=True):
                if id(variable) not in slots and _moved_otherwise(value, state, old, self.rounding):
                    wrong.append((variable.name, value, state))
        if not wrong:
            return "", eager
        name, one, other = wrong[0]
        one, other = _furthest(one, other)
        refusal = (
            f"{self._first_method()} of {self.name} computes something else compiled than in eager mode "
            f"({name}: {one:.4g}, eager {other:.4g}), because TensorFlow's graph optimizer changes it: write it with "
            f"other operations, or set TF_ENABLE_ONEDNN_OPTS=0. {_INSIST}"
        )
        return refusal, eager

    def _differs(self, one, other):
        return _distance(one, other) > self.rounding * _norm(other)

    def _wrong(self, gradients, expected):
        """Returns names, gradients and expected ones where they differ by more than rounding explains."""
        pairs = [w for w in zip(self.names, gradients, expected, strict=True) if self._differs(*w[1:])]
        if not pairs:
            return []
        spread, largest = self._spread(), max(map(_norm, expected))
        limits = [self.rounding * _norm(y) + self.cancelled * largest + 20 * spread[name] for name, _, y in pairs]
        return [w for w, limit in zip(pairs, limits, strict=True) if _distance(*w[1:]) > limit]

    def _spread(self):
        """Returns how far rounding moves each gradient, a dict by name: the change at weights with other last bits."""
        found = []
        size = 2**-8 if self.rounding == _ROUNDING_16 else 2**-20
        start = self.start
        for is_moved in (False, True, True):
            self.start = list(start)
            for i in map(self._place, self.trained if is_moved else ()):
                noise = 1 + size * self.random.uniform(-1, 1, start[i].shape)
                self.start[i] = tf.cast(tf.cast(start[i], tf.float64) * noise, start[i].dtype)
            found.append(self._gradients())
        self.start = start
        first, *others = found
        sizes = [max(_distance(x, y) for y in ys) for x, *ys in zip(first, *others, strict=True)]
        return dict(zip(self.names, sizes, strict=True))

    def _gradients(self):
        self.reset()
        return self.step.compute_gradients(*(self.prepared or self.step.prepare_batch(*self.batch)))[0]

    def _first_method(self):
        """Returns the name of the first method that computes something else compiled, each compiled alone."""
        found, own = [], vars(self.step)

        def wrap(name, method):
            def run(*args):
                if tf.inside_function():
                    return method(*args)
                before = [tf.identity(v) for v in self.variables]
                tf.config.run_functions_eagerly(False)
                results = tf.function(lambda *args: method(*args))(*args)
                tf.config.run_functions_eagerly(True)
                after = [tf.identity(v) for v in self.variables]
                for variable, value in zip(self.variables, before, strict=True):
                    variable.assign(value)
                expected = method(*args)
                states = zip(after, self.variables, before, strict=True)
                pairs = zip(_floats(results), _floats(expected), strict=True)
                if any(self._differs(*pair) for pair in pairs) or (
                    name == "apply_gradients" and any(_moved_otherwise(*state, self.rounding) for state in states)
                ):
                    found.append(name)
                return expected

            return run

        self.reset()
        own.update({name: wrap(name, getattr(self.step, name)) for name in _METHODS})
        try:
            self.step(*self.batch)
        finally:
            for name in _METHODS:
                del own[name]
        return found[0] if found else "__call__"

    # 2. and 3. The gradients.

    def _compare_with_differences(self, gradients, is_double):
        slices = self.step.slices
        try:
            if slices > 1:
                vars(self.step)["slices"] = 1  # the loss of the whole batch is one number
                gradients = self._gradients()
            return _Differences(self, [self._unscaled(g) for g in gradients], is_double).judge()
        finally:
            vars(self.step)["slices"] = slices

    def _compare_with_float64(self, loss, gradients, exact_loss, exact):
        if not self.is_comparable or _distance(loss, exact_loss) > self.same_loss * _norm(exact_loss):
            return ""  # another function, as its draws depend on the type
        wrong = self._wrong(gradients, exact)
        if self.rounding == _ROUNDING_16:  # rounding alone may turn the signs of other gradients than sums
            wrong = [w for w in wrong if w[2] is None or len(w[2].shape) < 2]
        if not wrong:
            return ""
        name, one, other = max(wrong, key=lambda w: _distance(*w[1:]) / (_norm(w[2]) + 1e-30))
        one, other = _furthest(self._unscaled(one), self._unscaled(other))
        return (
            f"the gradient of {name} is wrong in {self.dtype}: {one:.4g}, in float64 {other:.4g} for the same images. "
            f'Give the layer dtype="{"float64" if self.dtype == "float32" else "float32"}". {_INSIST}'
        )

    def _unscaled(self, gradient):
        return None if gradient is None else _array(gradient) / float(self.step.optimizer.scale_loss(1.0))

    def loss(self):
        """Returns the loss of the batch as a tensor, from the same draws each time."""
        for variable, value in self.others:
            variable.assign(value)
        losses, _ = self.step.compute_loss(*(self.prepared or self.step.prepare_batch(*self.batch)))
        return sum(losses.values()) if isinstance(losses, dict) else losses


class _Differences:
    """Central differences of the loss along random directions, at several step sizes whose disagreement bounds them."""

    def __init__(self, trial, gradients, is_double):
        self.trial, self.gradients, self.is_double = trial, gradients, is_double
        self.steps, self.tolerance, self.factor = (_STEPS_64, 1e-4, 10) if is_double else (_STEPS, 3e-3, 4)
        trial.reset()
        self.base = trial.loss()
        self.noise = 1e-13 if self.base.dtype == tf.float64 else 1e-7
        self.weights = [None] * len(trial.trained)
        sizes = {}
        values = dict(zip(map(id, trial.variables), trial.start, strict=True))
        for i, variable in enumerate(trial.trained):
            kept = np.array_equal(variable.numpy(), values[id(variable)].numpy())  # the loss may change it itself
            self.weights[i] = np.float64(values[id(variable)])
            if kept and variable.dtype in (tf.float32, tf.float64):
                sizes[i] = _size(variable)
        norms = {i: 0.0 if gradients[i] is None else _norm(gradients[i]) for i in sizes}
        middle = np.median([norms[i] * sizes[i] for i in sizes]) if sizes else 0.0
        # Each variable gets a similar share of the change, so that none is lost beside the others.
        self.sizes = {i: s * float(np.clip(middle / (norms[i] * s + 1e-300), 1, 30)) for i, s in sizes.items()}
        self.scales = {i: norms[i] * self.sizes[i] for i in sizes}

    def judge(self):
        """Returns the refusal, or ""."""
        if not self.sizes:
            return ""
        chosen = [*self.sizes]
        if not any(self._fails(chosen) for _ in range(_DIRECTIONS)):
            return ""
        if sum(bool(self._fails(chosen)) for _ in range(_MORE_DIRECTIONS)) <= _MORE_DIRECTIONS // 2:
            return ""
        failed = []
        for i in chosen:
            found = [self._fails([i]) for _ in range(4)]
            found = [f for f in found if f]
            if len(found) >= 3:
                failed.append((max(found)[0], i, *max(found)[1:]))
        if not failed:
            return ""
        _, i, claimed, measured = max(failed)
        step = self.trial.name
        return (
            f"the gradient of {self.trial.names[i]} is not the derivative of the loss: along a random direction it "
            f"gives {claimed:.4g}, differences of the loss give {measured:.4g} "
            f"({'float64' if self.is_double else 'float32'}).\nCorrect the gradient, or set exact_gradients = False "
            f"in {step} if it is on purpose another one. {_INSIST}"
        )

    def _fails(self, chosen):
        """Returns the relative discrepancy and the two derivatives along a new direction, or None within the bounds."""
        trial = self.trial
        signs = {i: trial.random.choice([-1.0, 1.0], trial.trained[i].shape) for i in chosen}
        base, rows = float(self.base), []
        window = 2 if self.is_double else 3
        for h in self.steps:
            above, below = self._loss(signs, h), self._loss(signs, -h)
            claimed = sum(np.sum(g * (above[1][i] - below[1][i])) for i, g in self._known(chosen)) / (2 * h)
            measured = (above[0] - below[0]) / (2 * h)
            kink = (above[0] + below[0] - 2 * base) / (2 * h)
            rows.append((h, claimed, measured, kink))
            if len(rows) >= window:
                best = min((self._bound(rows[i : i + window]), i) for i in range(len(rows) - window + 1))
                scale = max(np.sqrt(sum(self.scales[i] ** 2 for i in chosen)), abs(measured))
                if not np.isfinite(best[0]):
                    return None
                if best[0] < self.tolerance * scale:
                    break
        bound, i = best
        _, claimed, measured, _ = rows[i]
        error = abs(claimed - measured)
        return (error / scale, claimed, measured) if error > self.factor * bound + self.tolerance * scale else None

    def _known(self, chosen):
        return [(i, self.gradients[i]) for i in chosen if self.gradients[i] is not None]

    def _bound(self, rows):
        """Returns a bound of the error of the first of several differences."""
        errors = [claimed - measured for _, claimed, measured, _ in rows]
        (h, _, _, kink), (next_h, _, _, next_kink) = rows[:2]
        ratio = next_h / h
        at_kink = abs(ratio * kink - next_kink) / (ratio - 1)  # without what curvature adds
        return max(errors) - min(errors) + at_kink + self.noise * abs(float(self.base)) / h

    def _loss(self, signs, h):
        """Returns the loss, and the weights as rounded, a dict, at a distance along a direction."""
        trial, moved = self.trial, {}
        for i, variable in enumerate(trial.trained):
            value = self.weights[i] + h * self.sizes[i] * signs[i] if i in signs else self.weights[i]
            variable.assign(tf.constant(value, variable.dtype))
            if i in signs:
                moved[i] = np.float64(variable.numpy())
        return float(trial.loss()), moved


def _size(variable):
    """Returns the root mean square of a variable, or 0.05 if it is zero or less than that."""
    return max(float(np.sqrt(np.mean(np.float64(variable.numpy()) ** 2))) if variable.shape.num_elements() else 0, 0.05)


def _layers(step):
    return [part for layer in checkpoint.layers_of(step) for part in layer._flatten_layers()]


def _floats(structure):
    """Returns the floating-point tensors of a structure as a list."""
    flat = [tf.convert_to_tensor(x) for x in tf.nest.flatten(structure) if x is not None]
    return [x for x in flat if x.dtype.is_floating]


def _array(x):
    return np.float64(tf.cast(tf.convert_to_tensor(x), tf.float64))


def _norm(x):
    return 0.0 if x is None else float(np.sqrt(np.sum(_array(x) ** 2)))  # BLAS would wait for its threads


def _distance(one, other):
    if one is None or other is None:
        return _norm(one) + _norm(other)
    return float(np.sqrt(np.sum((_array(one) - _array(other)) ** 2)))


def _furthest(one, other):
    """Returns the two numbers of two tensors that differ most."""
    one, other = (np.zeros(1) if x is None else _array(x).ravel() for x in (one, other))
    place = np.argmax(np.abs(one - other))
    return np.broadcast_to(one, np.shape(one - other))[place], np.broadcast_to(other, np.shape(one - other))[place]


def _moved_otherwise(one, other, before, rounding):
    """Returns whether a variable changed in two ways that rounding does not explain."""
    if one.dtype in (tf.bool, tf.string):
        return False
    apart, move, size = _distance(one, other), _distance(other, before), _norm(other)
    floor = 1e-3 if rounding == _ROUNDING_16 else 1e-6
    return apart > rounding * move + 1e-5 * size + floor * max(1, one.shape.num_elements()) ** 0.5


def _draws_in_xla(function):
    """Returns whether XLA compiles a concrete function that draws random numbers."""
    if not function.function_def.attr["_XlaMustCompile"].b:
        return False
    definition = function.graph.as_graph_def()
    inner = (node for part in definition.library.function for node in part.node_def)
    return any(node.op.startswith("Stateless") for node in [*definition.node, *inner])


@contextlib.contextmanager
def _undone(step, variables):
    """Restores variables, what the step keeps in Python at any depth, and the generators of the process."""
    values = [tf.identity(v) for v in variables]
    kept, states = list(_containers(step, {})), (random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        for container, before in kept:
            _restore(container, before)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _containers(value, seen):
    """Yields what may change in Python objects of the user, with shallow copies."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, (dict, list, set, collections.deque)):
        yield value, copy.copy(value) if not isinstance(value, dict) else dict(value)
        parts = [*value.values()] if isinstance(value, dict) else [*value]
    elif is_own(type(value)) and hasattr(value, "__dict__") and not isinstance(value, type):
        yield vars(value), dict(vars(value))
        parts = [*attributes_of(value).values()]
    elif isinstance(value, tuple):
        parts = value
    else:
        return
    for part in parts:
        yield from _containers(part, seen)


def _restore(container, before):
    old, new = ([*x.items()] if isinstance(x, dict) else [(None, part) for part in x] for x in (before, container))
    if len(old) == len(new) and all(a is b and x is y for (a, x), (b, y) in zip(old, new, strict=True)):
        return
    if isinstance(container, list):
        del container[:]  # an assignment to the slice of a list in a tf.Module would compare tensors
    else:
        container.clear()
    (container.extend if isinstance(container, (list, collections.deque)) else container.update)(before)


@contextlib.contextmanager
def _eagerly(step, view):
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        silent = contextlib.redirect_stdout(io.StringIO())
        with Context(view=view).tracing(step), silent, tf.summary.record_if(False):
            yield
    finally:
        tf.config.run_functions_eagerly(before)


class _Float64(keras.DTypePolicy):
    """The policy of a layer that computes in float64 with float32 variables."""

    compute_dtype = "float64"


@contextlib.contextmanager
def _in_float64(step, dtype):
    """Makes the layers and the losses of a step compute in float64, with the draws of `dtype`."""
    parts = [*_layers(step), *(x for x in tf.nest.flatten(list(vars(step).values())) if isinstance(x, keras.Loss))]
    parts = [part for part in parts if part._dtype_policy.compute_dtype in ("float32", "bfloat16", "float16")]
    new = {"_dtype_policy": _Float64("float32"), "_dtype": "float64"}
    before = [{key: vars(part)[key] for key in new if key in vars(part)} for part in parts]
    names = ("stateless_random_uniform_v2", "stateless_random_normal_v2", "stateless_truncated_normal_v2")
    drawing, floatx = {name: getattr(draws, name) for name in names}, keras.config.floatx()
    try:
        for part, kept in zip(parts, before, strict=True):
            vars(part).update({key: new[key] for key in kept})
        vars(draws).update({name: _drawing_as(dtype, draw) for name, draw in drawing.items()})
        keras.config.set_floatx("float64")
        yield
    finally:
        keras.config.set_floatx(floatx)
        vars(draws).update(drawing)
        for part, kept in zip(parts, before, strict=True):
            vars(part).update(kept)


def _drawing_as(native, draw):
    def run(*args, dtype=tf.float32, **kwargs):
        if tf.as_dtype(dtype) != tf.float64:
            return draw(*args, dtype=dtype, **kwargs)
        return tf.cast(draw(*args, dtype=tf.as_dtype(native), **kwargs), tf.float64)

    return run
