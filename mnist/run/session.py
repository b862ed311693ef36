"""A run under way: the step, the state that its checkpoints hold, and where both are written."""

import functools
import math
import os
import time
import zlib

from mnist import Error, checkpoint
from mnist.checkpoint import Best, attributes, fingerprint_of, resume
from mnist.cli import Progress, say
from mnist.data import as_tensors, check_order, epoch_batches
from mnist.distributed import Replicas
from mnist.metrics import RunningMeans
from mnist.model import describe_model, probe
from mnist.run import provenance
from mnist.run.evaluator import Evaluator
from mnist.run.introduction import introduce
from mnist.run.profiler import Profiler
from mnist.run.results import MetricsFile, results_of
from mnist.step import Context, TrainStep, View, compile_loop, describe_measuring
from mnist.summaries import NoSummaries, Summaries, hparams

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

    def __init__(self, step, dataset, workdir, plan, settings=None, flags_text="", shown=None, replicas=None):
        self.step, self.dataset, self.workdir, self.plan = step, dataset, workdir, plan
        self.folder = os.path.abspath(workdir)  # of all files; messages have it as it was given
        self.directory = os.path.join(self.folder, "checkpoints")
        self.flags_text, self.shown = flags_text, shown
        fingerprint = fingerprint_of(step, dataset, plan, settings)
        # What a fresh step has and can take back: not what it holds when it has been traced.
        self.variables = checkpoint.variables_of(step)
        self.attributes = attributes(step)
        self.replicas = replicas or Replicas()
        self.cluster = self.replicas.cluster
        self.evaluator = Evaluator(step, plan.eval_batch_size)
        self.state, self.order = resume.start(step, self.cluster, plan, fingerprint, self.directory, workdir)
        keeps_best = plan.best and self.cluster.is_chief
        self.best = Best(self.directory, *plan.best, self.state["history"]) if keeps_best else None
        self.batches, self.epoch = None, None  # of that epoch
        self.unbounded = set()  # scalars that were NaN or infinite, each said once
        self.start_step = self.step_number
        self.saved = (self.step_number, len(self.state["history"]))
        self.state |= {"fingerprint": fingerprint, "dataset": dataset.name, "data_dir": dataset.data_dir}
        self.state |= {"classes": dataset.classes, "framed": dataset.is_framed(), "test_sha256": dataset.test.digest()}
        self.state |= {"measures": describe_measuring(step), "keep_best": plan.best}
        self.profiler = Profiler(self.folder, plan.profiled if self.cluster.is_chief else None)
        self.progress = Progress(plan, silent=not self.cluster.is_chief)
        if self.is_over:
            self._compile(None)  # its results are told once more: not those of other code
        if step.slices > 1:
            say(self.replicas.describe(step.slices))
        if self.cluster.is_chief and self.is_over:
            finished = f"{workdir} is finished, at step {self.step_number:,}"
            self.progress.say(f"{finished}: --epochs or --max_steps may be raised.")
        elif self.cluster.is_chief:
            introduce(step, dataset, workdir, flags_text, self.start_step, plan.last_step, self.progress.say)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.progress.close()
        self.profiler.close()
        if "summaries" in vars(self):
            self.summaries.close()

    @property
    def step_number(self):
        return self.state["step"]

    @property
    def evaluated(self):
        """The step of the last evaluation, -1 before the first."""
        return self.state["history"][-1]["step"] if self.state["history"] else -1

    @property
    def is_over(self):
        return self.plan.is_over(self.step_number, self.state["history"])

    @functools.cached_property
    def summaries(self):
        """The event files, which the chief alone writes."""
        return Summaries(self.folder) if self.cluster.is_chief else NoSummaries()

    @functools.cached_property
    def loop(self):
        step, plan, is_chief = self.step, self.plan, self.cluster.is_chief
        make_loop, graph = self._compile((lambda: self.summaries.writer) if is_chief else None)
        self._start_batches()
        loop = make_loop()
        loop.trace(self.batches)
        self.state["provenance"] = provenance.describe()
        self.metrics_file = MetricsFile(self.folder, self.state, plan) if is_chief else None
        shown = {"dataset": (self.dataset.name, "mnist")} | (self.shown or hparams.of(step, plan))
        self.summaries.begin(self.start_step, shown, self.workdir)
        if not self.start_step:
            self.summaries.describe(step, self.dataset, self.flags_text, self.state["provenance"], graph)
        return loop

    def _compile(self, open_writer):
        """Compiles the step. Raises: `mnist.Error` if the run's computed something else."""
        step, plan, is_silent = self.step, self.plan, not self.cluster.is_chief
        view = View(self.workdir, self.dataset, plan.norms_every, plan.histograms_every, is_silent=is_silent)
        context = Context(self.replicas, view, jit_compile=plan.jit_compile)
        order = tf.range(plan.num_examples)  # any: of the batches only the shapes count
        spec = epoch_batches(*self.tensors, order, plan.batch_size).element_spec
        make_loop, graph, digest = compile_loop(step, context, spec, self.variables, open_writer)
        resume.check_traced(self.state, digest, self.workdir, self.cluster)
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
        plan, state, first = self.plan, self.state, self.step_number + 1
        loop, summaries = self.loop, self.summaries  # in this order: a step may be refused
        start = time.perf_counter()
        if self.epoch != plan.position(self.step_number)[0]:
            self._start_batches()
        seconds = time.perf_counter() - start
        with self.profiler.loop(self.step_number, num_steps):
            start = time.perf_counter()
            scalars, rates = loop(self.batches, first, num_steps)
            seconds += time.perf_counter() - start
        done = int(np.isfinite(scalars["loss"]).sum())  # the loop ends after one that is not
        curves = {f"batch/{name}": values[:done] for name, values in scalars.items()}
        summaries.write_steps(first, curves | {"rates/learning_rate": rates[:done]})
        summaries.write_looks(self.step.view.take())
        if done < num_steps:
            summaries.flush()
            raise self._not_finite(f"the loss is {scalars['loss'][done]} at step {first + done}")
        for name in scalars.keys() - self.unbounded:
            if (wrong := np.flatnonzero(~np.isfinite(scalars[name]))).size:
                self.unbounded.add(name)
                self.progress.say(
                    f"{name} is {scalars[name][wrong[0]]} at step {first + wrong[0]}, so its mean is none."
                )
        counted = int(self.step.iterations)
        skips = isinstance(self.step.optimizer, keras.optimizers.LossScaleOptimizer)  # gradients that are not finite
        if counted != first + done - 1 and not skips:
            raise RuntimeError(f"optimizer.iterations is {counted} after step {first + done - 1}.")
        batch_sizes = plan.batch_sizes(first, done)
        means = RunningMeans(state["totals"], state["count"])
        means.add(scalars, batch_sizes)
        state.update(step=first + done - 1, totals=means.totals, count=means.count)
        state["seconds"] += seconds
        state["images"] += sum(batch_sizes)
        images_per_second = sum(batch_sizes) / seconds
        summaries.write_scalars("train", self.step_number, {"speed/images_per_second": images_per_second})
        self.progress.update(self.step_number, means.means(), images_per_second, done / seconds)

    def evaluate(self):
        """Adds the metrics of the epoch so far, and of the validation set, to the history."""
        number, state, examples = self.step_number, self.state, self.dataset.validation
        self.loop  # noqa: B018 (a step may be refused; and there is a point before any training)
        train = RunningMeans(state["totals"], state["count"]).means()
        self.step.update_eval_model()
        with self.summaries.writing("validation", number):
            measured = self.evaluator.measure(examples, "validation")
        if not math.isfinite(measured.metrics["loss"]):
            raise self._not_finite(f"the validation loss is {measured.metrics['loss']} at step {number}")
        entry = {"step": number} | {f"train_{name}": value for name, value in train.items()}
        entry |= {f"validation_{name}": value for name, value in measured.metrics.items()}
        is_best = self.best and self.best.is_better(entry)
        state["history"].append(entry)
        state["times"].append(state["seconds"])
        if number % self.plan.steps_per_epoch == 0:
            state.update(totals={}, count=0)
        self.summaries.write_evaluation(number, train, measured, examples, self.dataset.classes, self.step.eval_model)
        self.summaries.flush()
        if is_best:
            checkpoint.remove_newer(self.best.directory, number)  # of a process that was killed, and will come again
            self._write_checkpoint(self.best.directory, 1)
        if self.metrics_file:
            self.metrics_file.append(entry, state["seconds"])
        if number:
            self.progress.say(
                f"epoch {self.plan.epoch_of(number)} step {number} "
                f"loss {train['loss']:.4f} accuracy {train['accuracy']:.4f} "
                f"validation loss {entry['validation_loss']:.4f} accuracy {entry['validation_accuracy']:.4f}"
            )

    def save(self):
        """Saves a checkpoint if anything is new since the last."""
        now = (self.step_number, len(self.state["history"]))
        if now == self.saved or not self.step_number:
            return
        self.summaries.flush()
        checkpoint.check_unchanged(self.attributes, attributes(self.step))
        self.step.update_eval_model()
        variables = self.variables | checkpoint.variables_of_eval_model(self.step)
        self.cluster.check_same(
            checkpoint.digest(variables) if self.cluster.workers > 1 else 0,
            "has other weights than the chief: its processor or its software computes otherwise, or the step keeps "
            "something to itself. Nothing of this was saved",
        )
        if self.cluster.is_chief:
            names = ("train", "validation", "model.txt")
            if gone := [name for name in names if not os.path.exists(os.path.join(self.folder, name))]:
                self.progress.say(f"{', '.join(gone)} of {self.workdir} was deleted under way and is lost.")
            self._write_checkpoint(self.directory, self.plan.keep_checkpoints)
        self.saved = now

    def _write_checkpoint(self, directory, keep):
        variables = self.variables | checkpoint.variables_of_eval_model(self.step)
        # The default order is a pure function; another may depend on what the step had learnt when the epoch began.
        learnt = type(self.step).epoch_order is not TrainStep.epoch_order and self.order is not None
        extra = {"order": self.order} if learnt else {}
        extra["answers"] = tf.constant(probe(self.step.eval_model))
        metadata = self.state | {"model": describe_model(self.step.eval_model)}
        try:
            checkpoint.save(directory, variables, metadata, keep, extra)
        except checkpoint.NotFinite as error:
            raise self._not_finite(f"{error} is not finite at step {self.step_number}") from None

    def results(self):
        """The content of `results.json`; nothing is trained after."""
        self.step.update_eval_model()
        results = results_of(self)
        if "summaries" in vars(self):
            self.summaries.write_results(self.step_number, results, self.state["history"])
            self.summaries.write_features(self.step.eval_model, self.dataset.validation, self.dataset.classes)
        return results

    def _not_finite(self, what):
        last = f"ckpt-{self.saved[0]} is the last good checkpoint" if self.saved[0] else "no checkpoint was saved yet"
        return Error(f"{what}; {last}. Try a lower --learning_rate in another --workdir.")
