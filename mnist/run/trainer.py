"""Trains some steps of a run, evaluates it, saves it and finishes it."""

import contextlib
import math
import time
import zlib

from mnist import Error
from mnist.data import Examples, as_tensors, check_order, check_training_set, epoch_batches, read_only
from mnist.machine import portable_operations
from mnist.run import provenance
from mnist.run.evaluator import Evaluator
from mnist.run.state import RunState
from mnist.step import (
    StepFailed,
    TrainStep,
    check_compiled,
    check_methods_are_called,
    check_settings_are_used,
    compile_loop,
)

import numpy as np
import tensorflow as tf

_FEW = 4  # images on which a step is checked, if it can take so few


class Trainer:
    """The step of a run, its batches and its compiled loop.

    The first training step or evaluation compiles the step, then opens the files. A finished run is compiled only to
    compare its code, and opens no files. A step that is refused leaves no file.

    A hook of the step, such as `extra_metrics`, is called after a save. If it raises, no training is lost.

    Args:
      step, dataset, plan: the same as in `train_and_evaluate`.
      context: the `Context` for the compilation of the step.
      checkpointer, recorder: objects that save the run, and that write what people read.
      inspection: the `data.Inspection` of the data set.

    Attributes:
      state: the `RunState` now.
    """

    def __init__(self, step, dataset, plan, context, checkpointer, recorder, inspection):
        self.step, self.dataset, self.plan, self.context = step, dataset, plan, context
        self.checkpointer, self.recorder, self.inspection = checkpointer, recorder, inspection
        self.evaluator = Evaluator(step, plan.eval_batch_size, self._hook)
        self.state, self._order = RunState(), None
        self._examples = Examples(*map(read_only, dataset.train))
        self._tensors = as_tensors(self._training_set())
        self._any_order = tf.range(plan.num_examples)  # for what depends on the shapes of the batches alone
        self._batches, self._epoch = None, None  # an iterator over the batches of that epoch
        self._loop = None  # before the first training step or evaluation

    def _training_set(self):
        """Returns the arrays that the step trains on. Adds the digest of a subclass's arrays to the fingerprint."""
        train, name = self.dataset.train, f"training_set of {type(self.step).__name__}"
        if type(self.step).training_set is TrainStep.training_set:
            return train
        with self._hook("training_set"):
            found = self.step.training_set(*map(read_only, train))
            found = check_training_set(found, train, len(self.dataset.classes), name)
        self._examples = Examples(*map(read_only, found[:2]))
        digests = [zlib.crc32(np.ascontiguousarray(array)) for array in found]
        self.checkpointer.add_to_fingerprint("training_set", digests)
        return found

    @contextlib.contextmanager
    def _hook(self, name):
        """Watches a method of the step in plain Python. If it raises, its user may change its code and resume."""
        try:
            with self.checkpointer.watch.hook(name):
                yield
        except Exception:
            self.checkpointer.allow_other_hooks()
            raise

    def restore(self):
        """Restores the run from its newest sound checkpoint, if there is one."""
        self.state, self._order = self.checkpointer.restore()

    def introduce(self):
        """Prints what the run goes on from, or that it is finished and why."""
        if (why := self.why_over()) and self.state.evaluated == self.state.step:
            self.compile()  # else the results of other code would be returned
            self.recorder.say(f"{self.context.view.workdir} is finished, at step {self.state.step:,}: {why}.")
        else:
            self.recorder.introduce(self.step, self.dataset, self.inspection, self.state.step)

    def why_over(self):
        """Returns why the run is over, as `Plan.why_over`. Returns "" while it goes on."""
        return self.plan.why_over(self.state.step, self.state.history, self.state.ended)

    def compile(self, open_writer=None):
        """Compiles the step as `compile_loop`. Returns: a function that makes the loop, and a concrete function.

        Raises: `mnist.Error` as `compile_loop`, or if the step computes something else than the run did.
        """
        spec = self._make_batches(self._any_order).element_spec
        variables = self.checkpointer.variables
        with self.checkpointer.watch.tracing():
            make_loop, function, digest = compile_loop(
                self.step, self.context, spec, variables, open_writer, self.plan.verify_every
            )
        check_methods_are_called(self.step)
        check_settings_are_used(self.step)
        self.checkpointer.check_traced(self.state, digest)
        return make_loop, function

    def _start(self):
        """Compiles the step, then opens the files, unless that is done."""
        if self._loop:
            return
        make_loop, function = self.compile(self.recorder.open_writer)
        if not self.state.step:  # refuses a wrong order, and a wrong step, before there are files
            self._start_batches()
            if self.plan.check_step:
                sizes = sorted({min(_FEW, self.plan.batch_size), self.plan.batch_size})
                batches = [[tf.gather(x, self._order[:size]) for x in self._tensors] for size in sizes]
                if note := check_compiled(self.step, self.context, function, batches):
                    self.recorder.say(note)
        checks = portable_operations() if self.plan.portable else contextlib.nullcontext()
        with self.checkpointer.watch.tracing(), checks:
            loop = make_loop()
            loop.trace(iter(self._make_batches(self._any_order)))
            if self.plan.portable:
                self.evaluator.trace()
        self._known = [f"train_{name}" for name in function.structured_outputs[0]]
        self.state.provenance = provenance.describe()
        self.recorder.begin(self.state, self.step, self.dataset, function.graph)
        self._loop = loop

    def _start_batches(self):
        """Makes the batches of the next epoch, or of the rest of the epoch in which the run resumes."""
        epoch, done = self.plan.position(self.state.step)
        if self._order is None or not done:
            with self._hook("epoch_order"):
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

    def train_steps(self):
        """Trains the steps of one call into the graph. Raises: `mnist.Error` for a loss that is not finite."""
        self._start()
        plan, state, recorder, first = self.plan, self.state, self.recorder, self.state.step + 1
        num_steps = min(plan.steps_per_loop, plan.steps_to_next_event(state.step))
        start = time.perf_counter()
        if self._epoch != plan.position(state.step)[0]:
            self._start_batches()
        seconds = time.perf_counter() - start
        with recorder.profiling(state.step, num_steps):
            start = time.perf_counter()
            try:
                scalars, rates = self._loop(self._batches, first, num_steps)
            except StepFailed as error:
                raise self.checkpointer.stopped(f"{error}", error.advice) from None
            seconds += time.perf_counter() - start
        done = int(np.isfinite(scalars["loss"]).sum())  # the loop stops after a loss that is not finite
        recorder.write_steps(first, done, scalars, rates, self.context.view.take())
        if done < num_steps:
            raise self.checkpointer.not_finite(f"the loss is {scalars['loss'][done]} at step {first + done}")
        self.checkpointer.check_finite(first + done - 1)
        batch_sizes = plan.batch_sizes(first, done)
        state.add_steps(scalars, batch_sizes, seconds)
        counted = int(self.step.iterations)
        if counted != state.step:
            raise RuntimeError(f"step.iterations is {counted} after step {state.step}.")
        recorder.report_steps(state, scalars, sum(batch_sizes) / seconds, done / seconds)

    def evaluate_if_due(self):
        """Evaluates the run at the steps of the plan, once each."""
        if self.plan.evaluation_due(self.state.step, self.state.evaluated):
            self._evaluate()

    def _evaluate(self):
        """Adds an evaluation to the history: the means over the epoch so far, and the validation metrics.

        Raises: `mnist.Error` if it does not have the metric of --keep_best, or if `after_evaluation` returns no bool.
        """
        self._start()
        self.save()  # before the hooks of the step
        plan, state, train, cluster = self.plan, self.state, self.state.means, self.context.replicas.cluster
        self.step.update_eval_model()
        with self.recorder.writing("validation", state.step):
            measured = self.evaluator.measure(self.dataset.validation, "validation")
        if not math.isfinite(loss := measured.metrics["loss"]):
            raise self.checkpointer.not_finite(f"the validation loss is {loss} at step {state.step}")
        if not state.step:
            self._report_first_loss(loss)
        entry = {"step": state.step} | {f"train_{name}": value for name, value in train.items()}
        entry |= {f"validation_{name}": value for name, value in measured.metrics.items()}
        if plan.best and plan.best[0] not in (known := dict.fromkeys([*entry, *self._known])):
            names = ", ".join(name for name in known if name != "step")
            raise Error(f"--keep_best={plan.best[0]}: no evaluation has it; there are {names}.")
        entry = cluster.agree(entry)[0]  # the last bits may differ on other processors, and a hook decides by them
        is_best = self.checkpointer.best and self.checkpointer.best.is_better(entry)
        state.add_evaluation(entry, ends_epoch=state.step % plan.steps_per_epoch == 0)
        self.recorder.write_evaluation(state, train, measured, self.dataset, self.step.eval_model)
        if is_best:
            self.checkpointer.save_best(state, self._order)
        with self._hook("after_evaluation"):
            ends = self.step.after_evaluation(dict(entry))
            if ends is not None and (np.ndim(ends) or np.asarray(ends).dtype != bool):
                raise Error(
                    f"after_evaluation of {type(self.step).__name__} returned {ends!r:.50}, expected True or nothing."
                )
        cluster.check_same(bool(ends), "ends the run in after_evaluation where the chief does not, or the reverse")
        if ends and state.step:
            state.ended = plan.last_step

    def _report_first_loss(self, loss):
        """Prints a loss before the first step that is far from the loss of equal answers for all classes."""
        equal = math.log(classes := len(self.dataset.classes))
        begins = f"the validation loss before the first step is {loss:.3g}, where equal answers have ln({classes}) = "
        if loss > 2 * equal:
            self.recorder.say(f"{begins}{equal:.3g}: the first weights give large logits, or wrong answers on purpose.")
        elif loss < equal / 2:
            self.recorder.say(f"{begins}{equal:.3g}: the first weights are trained already.")

    def save_if_due(self):
        """Saves the run at the steps of the plan."""
        if self.plan.save_due(self.state.step):
            self.save()

    def save(self):
        """Saves a checkpoint if the state has changed since the last."""
        if self.checkpointer.is_new(self.state):
            self.recorder.flush()
            self.recorder.report_deleted()
            self.checkpointer.save(self.state, self._order)

    def finish(self):
        """Saves and tests the run, and writes its results. Returns: the content of `results.json`, a flat dict."""
        step, plan, state, dataset, best = self.step, self.plan, self.state, self.dataset, self.checkpointer.best
        if state.evaluated < state.step:  # a patience that is new may end it within an epoch
            self._evaluate()
        if self._loop and state.step < plan.last_step:
            self.recorder.say(f"the run ends at step {state.step:,}: {self.why_over()}.")
        self.save()
        last = state.history[-1]
        step.update_eval_model()
        results = {
            "dataset": dataset.name,
            "dataset_sha256": state.dataset_sha256,
            "dataset_validation_sha256": state.validation_sha256,
            "dataset_test_sha256": state.test_sha256,
            "parameters": step.model.count_params(),
            "seed": step.seed,
            "epochs": plan.epochs,
            "steps": state.step,
            "batch_size": plan.batch_size,
            "portable": plan.portable,
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
        results |= self.inspection.counts | state.provenance
        self.recorder.write_results(state, results, dataset, step.eval_model)
        return results

    def _test(self, entry):
        """Returns the metrics of the test set, given the evaluation of the same weights in the history."""
        if self.dataset.test is self.dataset.validation:
            names = [name for name in entry if name.startswith("validation_")]
            return {name.removeprefix("validation_"): entry[name] for name in names}
        with self.recorder.writing("test", entry["step"]):
            return self.evaluator.measure(self.dataset.test, "test").metrics
