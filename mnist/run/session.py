"""A run under way: the step, the state that its checkpoints hold, and where both are written."""

import dataclasses
import functools
import math
import os
import time
import zlib

from mnist import Error, checkpoint
from mnist.checkpoint import Best, attributes, fingerprint_of, resume
from mnist.cli import say
from mnist.data import as_tensors, check_order, epoch_batches
from mnist.model import describe_model, probe
from mnist.run import provenance
from mnist.run.evaluator import Evaluator
from mnist.run.results import results_of
from mnist.run.state import RunState
from mnist.step import TrainStep, View, compile_loop, describe_measuring

import keras
import numpy as np
import tensorflow as tf


class Session:
    """A run that trains, evaluates and saves when its loop says so; entered, so that its files are closed.

    `state` is what a resumed run needs beside the variables: the step number, the sums of the epoch
    so far, the metrics of the epochs before, the seconds. It is JSON in every checkpoint.

    Made from the newest sound checkpoint of `workdir`, if there is one. What costs time, to compile the step or to
    open the event files, waits for the first training step: a finished run says so at once.

    Raises: `mnist.Error` if the checkpoint is of a run with other numbers, or none can be read.
    """

    def __init__(self, step, dataset, workdir, plan, recorder, settings=None):
        self.step, self.dataset, self.workdir, self.plan, self.recorder = step, dataset, workdir, plan, recorder
        self.directory = os.path.join(os.path.abspath(workdir), "checkpoints")
        fingerprint = fingerprint_of(step, dataset, plan, settings)
        # What a fresh step has and can take back: not what it holds when it has been traced.
        self.variables = checkpoint.variables_of(step)
        self.attributes = attributes(step)
        self.cluster = step.replicas.cluster
        self.evaluator = Evaluator(step, plan.eval_batch_size)
        found, self.order = resume.restore(step, plan, fingerprint, self.directory, workdir, self.cluster)
        self.state = RunState.from_json(found or {})
        keeps_best = plan.best and self.cluster.is_chief
        self.best = Best(self.directory, *plan.best, self.state.history) if keeps_best else None
        self.batches, self.epoch = None, None  # of that epoch
        self.saved = (self.step_number, len(self.state.history))
        self.state = dataclasses.replace(
            self.state,
            fingerprint=fingerprint,
            dataset=dataset.name,
            data_dir=dataset.data_dir,
            classes=dataset.classes,
            framed=dataset.is_framed(),
            test_sha256=dataset.test.digest(),
            measures=describe_measuring(step),
            keep_best=plan.best,
        )
        self.loop = None  # before the first training step or evaluation
        if step.slices > 1:
            say(step.replicas.describe(step.slices))
        if self.is_over:
            self._compile(None)  # refuses to return the results of other code
            finished = f"{workdir} is finished, at step {self.step_number:,}"
            recorder.say(f"{finished}: --epochs or --max_steps may be raised.")
        else:
            recorder.introduce(step, dataset, self.step_number)

    @property
    def step_number(self):
        return self.state.step

    @property
    def evaluated(self):
        """The step of the last evaluation, -1 before the first."""
        return self.state.evaluated

    @property
    def is_over(self):
        return self.plan.is_over(self.step_number, self.state.history)

    def _start(self):
        """Compiles the step and opens the files, once; a step that is refused leaves no file."""
        if self.loop:
            return
        make_loop, graph = self._compile(self.recorder.open_writer)
        self._start_batches()
        loop = make_loop()
        loop.trace(self.batches)
        self.state.provenance = provenance.describe()
        self.recorder.begin(self.state, self.step, self.dataset, graph)
        self.loop = loop

    def _compile(self, open_writer):
        """Compiles the step. Raises: `mnist.Error` if the run's computed something else."""
        step, plan, is_silent = self.step, self.plan, not self.cluster.is_chief
        step.view = View(self.workdir, self.dataset, plan.norms_every, plan.histograms_every, is_silent=is_silent)
        order = tf.range(plan.num_examples)  # any: of the batches only the shapes count
        spec = epoch_batches(*self.tensors, order, plan.batch_size).element_spec
        make_loop, graph, digest = compile_loop(step, spec, self.variables, plan.jit_compile, open_writer)
        resume.check_traced(self.state.traced, digest, self.workdir, self.cluster)
        self.state.traced = digest
        return make_loop, graph

    @functools.cached_property
    def tensors(self):
        return as_tensors(self.dataset.train)

    def _start_batches(self):
        """The batches of the epoch that begins, or of the rest of the one that the run was resumed in."""
        epoch, done = self.plan.position(self.step_number)
        if self.order is None or not done:
            order = self.step.epoch_order(self.dataset.train, epoch)
            self.order = check_order(order, self.plan.num_examples, f"epoch_order of {type(self.step).__name__}")
            self.cluster.check_same(
                zlib.crc32(self.order.numpy().tobytes()),
                "has another order of the epoch than the chief: epoch_order has to depend on nothing but the seed, the "
                "epoch and the step's variables",
            )
        self.batches = iter(epoch_batches(*self.tensors, self.order, self.plan.batch_size, done))
        self.epoch = epoch

    def train_steps(self, num_steps):
        """Trains `num_steps` in one call into the graph; raises at the first non-finite loss."""
        plan, state, recorder, first = self.plan, self.state, self.recorder, self.step_number + 1
        self._start()
        start = time.perf_counter()
        if self.epoch != plan.position(self.step_number)[0]:
            self._start_batches()
        seconds = time.perf_counter() - start
        with recorder.profiling(self.step_number, num_steps):
            start = time.perf_counter()
            scalars, rates = self.loop(self.batches, first, num_steps)
            seconds += time.perf_counter() - start
        done = int(np.isfinite(scalars["loss"]).sum())  # the loop ends after one that is not
        recorder.write_steps(first, scalars, rates, self.step.view.take())
        if done < num_steps:
            recorder.flush()
            raise self._not_finite(f"the loss is {scalars['loss'][done]} at step {first + done}")
        counted = int(self.step.iterations)
        skips = isinstance(self.step.optimizer, keras.optimizers.LossScaleOptimizer)  # gradients that are not finite
        if counted != first + done - 1 and not skips:
            raise RuntimeError(f"optimizer.iterations is {counted} after step {first + done - 1}.")
        batch_sizes = plan.batch_sizes(first, done)
        state.add_steps(scalars, batch_sizes, seconds)
        recorder.report_steps(state, scalars, sum(batch_sizes) / seconds, done / seconds)

    def evaluate(self):
        """Adds the metrics of the epoch so far, and of the validation set, to the history."""
        number, state, examples = self.step_number, self.state, self.dataset.validation
        self._start()
        train = state.means
        self.step.update_eval_model()
        with self.recorder.writing("validation", number):
            measured = self.evaluator.measure(examples, "validation")
        if not math.isfinite(measured.metrics["loss"]):
            raise self._not_finite(f"the validation loss is {measured.metrics['loss']} at step {number}")
        entry = {"step": number} | {f"train_{name}": value for name, value in train.items()}
        entry |= {f"validation_{name}": value for name, value in measured.metrics.items()}
        is_best = self.best and self.best.is_better(entry)
        state.add_evaluation(entry)
        if number % self.plan.steps_per_epoch == 0:
            state.totals, state.count = {}, 0
        self.recorder.write_evaluation(state, train, measured, self.dataset, self.step.eval_model)
        if is_best:
            checkpoint.remove_newer(self.best.directory, number)  # of a process that was killed, and will come again
            self._write_checkpoint(self.best.directory, 1)

    def save(self):
        """Saves a checkpoint if anything is new since the last."""
        now = (self.step_number, len(self.state.history))
        if now == self.saved or not self.step_number:
            return
        self.recorder.flush()
        checkpoint.check_unchanged(self.attributes, attributes(self.step))
        self.step.update_eval_model()
        variables = self.variables | checkpoint.variables_of_eval_model(self.step)
        self.cluster.check_same(
            checkpoint.digest(variables) if self.cluster.workers > 1 else 0,
            "has other weights than the chief: its processor or its software computes otherwise, or the step keeps "
            "something to itself. Nothing of this was saved",
        )
        if self.cluster.is_chief:
            self.recorder.report_deleted()
            self._write_checkpoint(self.directory, self.plan.keep_checkpoints)
        self.saved = now

    def _write_checkpoint(self, directory, keep):
        variables = self.variables | checkpoint.variables_of_eval_model(self.step)
        # The default order is a pure function; another may depend on what the step had learnt when the epoch began.
        learnt = type(self.step).epoch_order is not TrainStep.epoch_order and self.order is not None
        extra = {"order": self.order} if learnt else {}
        extra["answers"] = tf.constant(probe(self.step.eval_model))
        metadata = self.state.to_json() | {"model": describe_model(self.step.eval_model)}
        try:
            checkpoint.save(directory, variables, metadata, keep, extra)
        except checkpoint.NotFinite as error:
            raise self._not_finite(f"{error} is not finite at step {self.step_number}") from None

    def results(self):
        """The content of `results.json`; nothing is trained after."""
        self.step.update_eval_model()
        results = results_of(self)
        self.recorder.write_results(self.state, results, self.dataset, self.step.eval_model)
        return results

    def _not_finite(self, what):
        last = f"ckpt-{self.saved[0]} is the last good checkpoint" if self.saved[0] else "no checkpoint was saved yet"
        return Error(f"{what}; {last}. Try a lower --learning_rate in another --workdir.")
