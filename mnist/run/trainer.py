"""Trains some steps of a run, evaluates it, saves it and finishes it."""

import math
import time
import zlib

from mnist.data import Examples, as_tensors, check_order, check_training_set, epoch_batches, read_only
from mnist.run import provenance
from mnist.run.evaluator import Evaluator
from mnist.run.state import RunState
from mnist.step import TrainStep, check_settings_are_used, compile_loop

import numpy as np
import tensorflow as tf


class Trainer:
    """The step of a run, its batches and its compiled loop.

    The first training step or evaluation compiles the step, then opens the files. A finished run is compiled only to
    compare its code, and opens no files. A step that is refused leaves no file.

    Args:
      step, dataset, plan: the same as in `train_and_evaluate`.
      context: the `Context` for the compilation of the step.
      checkpointer, recorder: objects that save the run, and that write what people read.

    Attributes:
      state: the `RunState` now.
    """

    def __init__(self, step, dataset, plan, context, checkpointer, recorder):
        self.step, self.dataset, self.plan, self.context = step, dataset, plan, context
        self.checkpointer, self.recorder = checkpointer, recorder
        self.evaluator = Evaluator(step, plan.eval_batch_size, checkpointer.watch)
        self.state, self._order = RunState(), None
        self._examples = Examples(*map(read_only, dataset.train))
        self._tensors = as_tensors(self._training_set())
        self._batches, self._epoch = None, None  # an iterator over the batches of that epoch
        self._loop = None  # before the first training step or evaluation

    def _training_set(self):
        """Returns the arrays that the step trains on. Adds the digest of a subclass's arrays to the fingerprint."""
        train, name = self.dataset.train, f"training_set of {type(self.step).__name__}"
        if type(self.step).training_set is TrainStep.training_set:
            return train
        with self.checkpointer.watch.hook("training_set"):
            found = self.step.training_set(*map(read_only, train))
            found = check_training_set(found, train, len(self.dataset.classes), name)
        self._examples = Examples(*map(read_only, found[:2]))
        digests = [zlib.crc32(np.ascontiguousarray(array)) for array in found]
        self.checkpointer.add_to_fingerprint("training_set", digests)
        return found

    def restore(self):
        """Restores the run from its newest sound checkpoint, if there is one. Returns: its `RunState`."""
        self.state, self._order = self.checkpointer.restore()
        return self.state

    def compile(self, open_writer=None):
        """Compiles the step as `compile_loop`. Returns: a function that makes the loop, and the graph of the step.

        Raises: `mnist.Error` as `compile_loop`, or if the step computes something else than the run did.
        """
        order = tf.range(self.plan.num_examples)  # any order, because only the shapes of the batches count
        spec = self._make_batches(order).element_spec
        variables = self.checkpointer.variables
        with self.checkpointer.watch.tracing():
            make_loop, graph, digest = compile_loop(self.step, self.context, spec, variables, open_writer)
        check_settings_are_used(self.step)
        self.checkpointer.check_traced(self.state, digest)
        return make_loop, graph

    def _start(self):
        """Compiles the step, then opens the files, unless that is done."""
        if self._loop:
            return
        make_loop, graph = self.compile(self.recorder.open_writer)
        self._start_batches()
        with self.checkpointer.watch.tracing():
            loop = make_loop()
            loop.trace(self._batches)
        self.state.provenance = provenance.describe()
        self.recorder.begin(self.state, self.step, self.dataset, graph)
        self._loop = loop

    def _start_batches(self):
        """Makes the batches of the next epoch, or of the rest of the epoch in which the run resumes."""
        epoch, done = self.plan.position(self.state.step)
        if self._order is None or not done:
            with self.checkpointer.watch.hook("epoch_order"):
                order = self.step.epoch_order(self._examples, epoch)
                self._order = check_order(order, self.plan.num_examples, f"epoch_order of {type(self.step).__name__}")
            self.context.replicas.cluster.check_same(
                zlib.crc32(self._order.numpy().tobytes()),
                "has another order of the epoch than the chief: epoch_order has to depend on nothing but the seed, the "
                "epoch and the step's variables",
            )
        self._batches, self._epoch = iter(self._make_batches(self._order, done)), epoch

    def _make_batches(self, order, done=0):
        images, labels, *more = self._tensors
        return epoch_batches(images, labels, order, self.plan.batch_size, done, more)

    def train_steps(self, num_steps):
        """Trains `num_steps` in one call into the graph. Raises: `mnist.Error` for a loss that is not finite."""
        self._start()
        plan, state, recorder, first = self.plan, self.state, self.recorder, self.state.step + 1
        start = time.perf_counter()
        if self._epoch != plan.position(state.step)[0]:
            self._start_batches()
        seconds = time.perf_counter() - start
        with recorder.profiling(state.step, num_steps):
            start = time.perf_counter()
            scalars, rates = self._loop(self._batches, first, num_steps)
            seconds += time.perf_counter() - start
        done = int(np.isfinite(scalars["loss"]).sum())  # the loop stops after a loss that is not finite
        recorder.write_steps(first, done, scalars, rates, self.context.view.take())
        if done < num_steps:
            raise self.checkpointer.not_finite(f"the loss is {scalars['loss'][done]} at step {first + done}")
        batch_sizes = plan.batch_sizes(first, done)
        state.add_steps(scalars, batch_sizes, seconds)
        counted = int(self.step.iterations)
        if counted != state.step:
            raise RuntimeError(f"step.iterations is {counted} after step {state.step}.")
        recorder.report_steps(state, scalars, sum(batch_sizes) / seconds, done / seconds)

    def evaluate(self):
        """Adds an evaluation to the history: the means over the epoch so far, and the validation metrics."""
        self._start()
        state, train = self.state, self.state.means
        self.step.update_eval_model()
        with self.recorder.writing("validation", state.step):
            measured = self.evaluator.measure(self.dataset.validation, "validation")
        if not math.isfinite(loss := measured.metrics["loss"]):
            raise self.checkpointer.not_finite(f"the validation loss is {loss} at step {state.step}")
        entry = {"step": state.step} | {f"train_{name}": value for name, value in train.items()}
        entry |= {f"validation_{name}": value for name, value in measured.metrics.items()}
        is_best = self.checkpointer.best and self.checkpointer.best.is_better(entry)
        state.add_evaluation(entry, ends_epoch=state.step % self.plan.steps_per_epoch == 0)
        self.recorder.write_evaluation(state, train, measured, self.dataset, self.step.eval_model)
        if is_best:
            self.checkpointer.save_best(state, self._order)

    def save(self):
        """Saves a checkpoint if the state has changed since the last."""
        if self.checkpointer.is_new(self.state):
            self.recorder.flush()
            self.recorder.report_deleted()
            self.checkpointer.save(self.state, self._order)

    def finish(self):
        """Tests the run and writes its results. Returns: the content of `results.json`, a flat dict."""
        step, plan, state, dataset, best = self.step, self.plan, self.state, self.dataset, self.checkpointer.best
        last = state.history[-1]
        step.update_eval_model()
        results = {
            "dataset": dataset.name,
            "parameters": step.model.count_params(),
            "seed": step.seed,
            "epochs": plan.epochs,
            "steps": state.step,
            "batch_size": plan.batch_size,
            "train_seconds": state.seconds,
            "images_per_second": state.images / state.seconds,
            **{name: value for name, value in last.items() if name != "step"},
            **{f"test_{name}": value for name, value in self._test(last).items()},
        }
        if best and best.is_kept():
            entry = next(entry for entry in state.history if entry["step"] == best.step)
            results |= {f"best_{name}": value for name, value in entry.items()}
            with best.assigned(step, self.checkpointer.variables):
                results |= {f"best_test_{name}": value for name, value in self._test(entry).items()}
        results |= state.provenance
        self.recorder.write_results(state, results, dataset, step.eval_model)
        return results

    def _test(self, entry):
        """Returns the metrics of the test set, given the evaluation of the same weights in the history."""
        if self.dataset.test is self.dataset.validation:
            names = [name for name in entry if name.startswith("validation_")]
            return {name.removeprefix("validation_"): entry[name] for name in names}
        with self.recorder.writing("test", entry["step"]):
            return self.evaluator.measure(self.dataset.test, "test").metrics
