"""A run under way: the step, the state that its checkpoints hold, and where both are written."""

import functools
import math
import os
import time
import zlib

from mnist import Error, checkpoint, checks, resume, traced
from mnist.batches import as_tensors, check_order, epoch_batches
from mnist.fingerprint import attributes, fingerprint_of
from mnist.introduction import introduce
from mnist.metrics import RunningMeans, compute_metrics
from mnist.model import keep_state, make_predict_logits, summarize_model
from mnist.profiler import Profiler
from mnist.progress import Progress, say
from mnist.rebuild import describe_model, probe
from mnist.results import results_of
from mnist.step import TrainStep, alone, make_train_loop
from mnist.summaries import NoSummaries, Summaries

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

    def __init__(self, step, dataset, workdir, plan, settings=None, flags_text=""):
        self.step, self.dataset, self.workdir, self.plan = step, dataset, workdir, plan
        self.folder = os.path.abspath(workdir)  # of all files; messages have it as it was given
        self.directory = os.path.join(self.folder, "checkpoints")
        self.flags_text = flags_text
        fingerprint = fingerprint_of(step, dataset, plan, settings)
        # What a fresh step has and can take back: not what it holds when it has been traced.
        self.variables = checkpoint.variables_of(step)
        self.attributes = attributes(step)
        self.cluster = step.replicas.cluster
        self.state, self.order = resume.start(step, plan, fingerprint, self.directory, workdir)
        self.batches = None
        self.unbounded = set()  # scalars that were NaN or infinite, each said once
        self.start_step = self.step_number
        self.saved = (self.step_number, len(self.state["history"]))
        self.state |= {"fingerprint": fingerprint, "dataset": dataset.name, "data_dir": dataset.data_dir}
        self.state |= {"classes": dataset.classes, "framed": dataset.is_framed(), "test_sha256": dataset.test.digest()}
        self.profiler = Profiler(self.folder, plan.profiled if self.cluster.is_chief else None)
        self.progress = Progress(plan, silent=not self.cluster.is_chief)
        if step.slices > 1:
            say(step.replicas.describe(step.slices))
        if self.cluster.is_chief and plan.is_over(self.step_number, self.validation_losses):
            finished = f"{workdir} is finished, at step {self.step_number:,}"
            self.progress.say(f"{finished}: --epochs or --max_steps may be raised.")
        elif self.cluster.is_chief:
            introduce(step, dataset, workdir, flags_text, self.start_step, self.progress.say)

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
        """The step of the last evaluation, 0 before the first."""
        return self.state["history"][-1]["step"] if self.state["history"] else 0

    @property
    def validation_losses(self):
        return [entry["validation_loss"] for entry in self.state["history"]]

    @functools.cached_property
    def summaries(self):
        """The event files, which the chief alone writes."""
        if not self.cluster.is_chief:
            return NoSummaries()
        summaries = Summaries(self.folder, self.start_step)
        if not self.start_step:
            model = summarize_model(self.step.model)
            texts = {"flags": self.flags_text, "model": model, "dataset": self.dataset.name}
            summaries.describe({tag: f"```\n{text}\n```" for tag, text in texts.items()})  # Markdown: as typed
        return summaries

    @functools.cached_property
    def train_loop(self):
        jit_compile = self.plan.jit_compile
        train_step, train_loop = make_train_loop(self.step, jit_compile=jit_compile)
        with alone(self.step):  # what it computes, whoever shares it
            whole = train_step if self.step.slices == 1 else tf.function(self.step.__call__, jit_compile=jit_compile)
            function = whole.get_concrete_function(*self.batches.element_spec)
            digest = traced.check_step(function, self.variables, whole if jit_compile else None)
        resume.check_traced(self.state, digest, self.workdir, self.cluster)
        train_loop(self.batches, tf.constant(0))  # traces, so that no clock counts it
        if not self.start_step:
            self.summaries.describe_graph(function.graph)
        return train_loop

    @functools.cached_property
    def predict_logits(self):
        predict_logits = make_predict_logits(self.step.eval_model, self.plan.eval_batch_size)
        predict_logits(self.dataset.validation.images[:1])
        return predict_logits

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

    def train_steps(self, num_steps):
        """Trains `num_steps` in one call into the graph; raises at the first non-finite loss."""
        plan, state, first = self.plan, self.state, self.step_number + 1
        start = time.perf_counter()
        if self.batches is None or plan.position(self.step_number)[1] == 0:
            self._start_batches()
        seconds = time.perf_counter() - start
        train_loop, summaries = self.train_loop, self.summaries  # in this order: a step may be refused
        with self.profiler.loop(self.step_number, num_steps):
            start = time.perf_counter()
            scalars, rates = train_loop(self.batches, tf.constant(num_steps))
            scalars = {name: values.numpy() for name, values in scalars.items()}
            seconds += time.perf_counter() - start
        done = int(np.isfinite(scalars["loss"]).sum())  # the loop ends after one that is not
        curves = {f"batch_{name}": values[:done] for name, values in scalars.items()}
        summaries.write_steps(first, curves | {"learning_rate": rates[:done]})
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
        summaries.write_scalars("train", self.step_number, {"images_per_second": images_per_second})
        self.progress.update(self.step_number, means.means(), images_per_second, done / seconds)

    def evaluate(self):
        """Adds the metrics of the epoch so far, and of the validation set, to the history."""
        number, state, examples = self.step_number, self.state, self.dataset.validation
        train = RunningMeans(state["totals"], state["count"]).means()
        validation, predicted, images_per_second = self._compute_metrics(examples)
        if not math.isfinite(validation["loss"]):
            raise self._not_finite(f"the validation loss is {validation['loss']} at step {number}")
        state["history"].append(
            {"step": number}
            | {f"train_{name}": value for name, value in train.items()}
            | {f"validation_{name}": value for name, value in validation.items()}
        )
        if number % self.plan.steps_per_epoch == 0:
            state.update(totals={}, count=0)
        self.summaries.write_scalars("train", number, {f"epoch_{k}": v for k, v in train.items()})
        shown = {f"epoch_{k}": v for k, v in validation.items()} | {"images_per_second": images_per_second}
        self.summaries.write_scalars("validation", number, shown)
        self.summaries.write_predictions(number, examples, predicted, self.dataset.classes)
        self.summaries.flush()
        self.progress.say(
            f"epoch {self.plan.epoch_of(number)} step {number} "
            f"loss {train['loss']:.4f} accuracy {train['accuracy']:.4f} "
            f"validation loss {validation['loss']:.4f} accuracy {validation['accuracy']:.4f}"
        )

    def _compute_metrics(self, examples):
        """Returns: a dict of metrics, predicted labels, images per second but for the step's own metrics."""
        self.step.update_eval_model()
        predict_logits = self.predict_logits
        start = time.perf_counter()
        logits = predict_logits(examples.images).numpy()
        metrics = compute_metrics(logits, examples.labels)
        images_per_second = len(logits) / (time.perf_counter() - start)
        with keep_state(self.step.eval_model):
            extra = checks.check_extra_metrics(self.step.extra_metrics(*examples), metrics)
        return metrics | extra, logits.argmax(axis=1), images_per_second

    def save(self):
        """Saves a checkpoint if anything is new since the last."""
        now = (self.step_number, len(self.state["history"]))
        if now == self.saved:
            return
        self.summaries.flush()
        checks.check_unchanged(self.attributes, attributes(self.step))
        self.step.update_eval_model()
        variables = self.variables | checkpoint.variables_of_eval_model(self.step)
        self.cluster.check_same(
            checkpoint.digest(variables) if self.cluster.workers > 1 else 0,
            "has other weights than the chief: its processor or its software computes otherwise, or the step keeps "
            "something to itself. Nothing of this was saved",
        )
        if not self.cluster.is_chief:
            self.saved = now
            return
        names = ("train", "validation", "model.txt")
        if gone := [name for name in names if not os.path.exists(os.path.join(self.folder, name))]:
            self.progress.say(f"{', '.join(gone)} of {self.workdir} was deleted under way and is lost.")
        # The default order is a pure function; another may depend on what the step had learnt when the epoch began.
        learnt = type(self.step).epoch_order is not TrainStep.epoch_order and self.order is not None
        extra = {"order": self.order} if learnt else {}
        extra["answers"] = tf.constant(probe(self.step.eval_model))
        metadata = self.state | {"model": describe_model(self.step.eval_model)}
        try:
            checkpoint.save(self.directory, variables, metadata, self.plan.keep_checkpoints, extra)
        except checkpoint.NotFinite as error:
            raise self._not_finite(f"{error} is not finite at step {self.step_number}") from None
        self.saved = now

    def results(self):
        """The content of `results.json`."""
        state, test = self.state, self.dataset.test
        last = {name: value for name, value in state["history"][-1].items() if name != "step"}
        if test is self.dataset.validation:
            prefix = "validation_"
            metrics = {name.removeprefix(prefix): last[name] for name in last if name.startswith(prefix)}
        else:
            metrics, _, _ = self._compute_metrics(test)
        return results_of(self.step, self.dataset, self.plan, state) | {f"test_{k}": v for k, v in metrics.items()}

    def _not_finite(self, what):
        last = f"ckpt-{self.saved[0]} is the last good checkpoint" if self.saved[0] else "no checkpoint was saved yet"
        return Error(f"{what}; {last}. Try a lower --learning_rate in another --workdir.")
