"""A run under way: the step, the state that its checkpoints hold, and where both are written."""

import math
import os
import sys
import time

from mnist import Error, checkpoint, data
from mnist.evaluate import RunningMeans, compute_metrics, make_predict_logits
from mnist.fingerprint import differences
from mnist.model import summarize_model
from mnist.progress import Progress
from mnist.step import make_train_loop
from mnist.summaries import Summaries

import keras
import numpy as np
import tensorflow as tf


class Session:
    """A run with its pipeline, its compiled loops, its event files and its progress line.

    `state` is what a resumed run needs beside the variables: the step number, the sums of the epoch
    so far, the metrics of the epochs before, the seconds. It is JSON in every checkpoint.
    """

    def __init__(
        self, step, dataset, workdir, profiler, batch_size, epochs, max_steps, checkpoint_every, keep_checkpoints
    ):
        self.step, self.dataset, self.workdir, self.batch_size = step, dataset, workdir, batch_size
        self.profiler = profiler
        self.checkpoint_every, self.keep_checkpoints = checkpoint_every, keep_checkpoints
        self.directory = os.path.join(workdir, "checkpoints")
        self.steps_per_epoch = data.steps_per_epoch(len(dataset.train.labels), batch_size)
        self.last_step = min(epochs * self.steps_per_epoch, max_steps or sys.maxsize)

    @property
    def step_number(self):
        return self.state["step"]

    def restore(self, fingerprint, resume):
        """Takes the state and the variables of the newest sound checkpoint, if there is any."""
        self.state = {"step": 0, "totals": {}, "count": 0, "history": [], "seconds": 0.0, "images": 0}
        loaded = checkpoint.load_newest(self.directory)
        if loaded:
            if not resume:
                raise Error(f"{self.workdir} holds a run already: leave out --noresume, or name another --workdir.")
            tensors, self.state = loaded
            different = differences(self.state["fingerprint"], fingerprint)
            if different:
                raise Error(
                    f"{self.workdir} holds a run with other settings: {'; '.join(different[:3])}. "
                    "Give the same flags to go on, or another --workdir."
                )
            checkpoint.assign(self.step, tensors)
            if self.step_number > self.last_step:
                raise Error(
                    f"{self.workdir} is at step {self.step_number}, beyond the last step {self.last_step}: "
                    "raise --epochs or --max_steps."
                )
            checkpoint.set_aside_newer(self.directory, self.step_number)
        elif updates := int(self.step.optimizer.iterations):
            raise Error(f"the step has trained already (updates: {updates}): a new run needs a new one.")
        self.state |= {"fingerprint": fingerprint, "dataset": self.dataset.name, "data_dir": self.dataset.data_dir}
        self.saved = (self.step_number, len(self.state["history"]))

    def prepare(self, jit_compile, eval_batch_size, flags_text):
        """Builds pipeline, loops and event files; traces all, so that no clock counts it."""
        start = self.step_number
        train = self.dataset.train
        self.batches = iter(data.train_batches(train, self.batch_size, seed=self.step.seed, start_step=start))
        train_step, self.train_loop = make_train_loop(self.step, jit_compile=jit_compile)
        self.train_loop(self.batches, tf.constant(0))
        self.predict_logits = make_predict_logits(self.step.eval_model, eval_batch_size)
        self.predict_logits(train.images[:1])
        self.summaries = Summaries(self.workdir, start)
        self.progress = Progress(self.last_step, self.steps_per_epoch)
        if start:
            self.progress.say(f"going on from step {start}")
        else:
            texts = {"flags": flags_text, "model": summarize_model(self.step.model), "dataset": self.dataset.name}
            texts = {tag: f"```\n{text}\n```" for tag, text in texts.items()}  # Markdown: as typed
            self.summaries.describe(texts, train_step, self.batches.element_spec)

    def evaluation_due(self):
        """At the end of each epoch and of the run, once."""
        history, number = self.state["history"], self.step_number
        done = history[-1]["step"] if history else 0
        return number > done and (number % self.steps_per_epoch == 0 or number == self.last_step)

    def save_due(self):
        if self.checkpoint_every:
            return self.step_number % self.checkpoint_every == 0
        return self.step_number % self.steps_per_epoch == 0

    def steps_to_next_event(self):
        number = self.step_number
        periods = [self.steps_per_epoch] + ([self.checkpoint_every] if self.checkpoint_every else [])
        steps = [self.last_step - number, self.profiler.steps_to_edge(number)]
        return min(steps + [period - number % period for period in periods])

    def train_steps(self, num_steps):
        """Trains `num_steps` in one call into the graph; raises at the first non-finite loss."""
        first = self.step_number + 1
        with self.profiler.loop(self.step_number, num_steps):
            start = time.perf_counter()
            scalars = self.train_loop(self.batches, tf.constant(num_steps))
            scalars = {name: values.numpy() for name, values in scalars.items()}
            seconds = time.perf_counter() - start
        done = int(np.isfinite(scalars["loss"]).sum())  # the loop ends after one that is not
        self.summaries.write_batches(first, {name: values[:done] for name, values in scalars.items()})
        if done < num_steps:
            self.summaries.flush()
            raise self._not_finite(f"the loss is {scalars['loss'][done]} at step {first + done}")
        counted = int(self.step.optimizer.iterations)
        if counted != first + done - 1:
            raise RuntimeError(f"optimizer.iterations is {counted} after step {first + done - 1}.")
        batch_sizes = np.full(done, self.batch_size)
        if (first + done - 1) % self.steps_per_epoch == 0:  # the last batch of an epoch may be short
            batch_sizes[-1] = len(self.dataset.train.labels) - (self.steps_per_epoch - 1) * self.batch_size
        num_images = int(batch_sizes.sum())
        state = self.state
        means = RunningMeans(state["totals"], state["count"])
        means.add(scalars, batch_sizes)
        state.update(step=first + done - 1, totals=means.totals, count=means.count)
        state["seconds"] += seconds
        state["images"] += num_images
        rates = {"learning_rate": self._learning_rate(), "images_per_second": num_images / seconds}
        self.summaries.write_scalars("train", self.step_number, rates)
        last = {name: values[-1] for name, values in scalars.items()}
        self.progress.update(self.step_number, last, num_images / seconds, done / seconds)

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
        if number % self.steps_per_epoch == 0:
            state.update(totals={}, count=0)
        self.summaries.write_scalars("train", number, {f"epoch_{k}": v for k, v in train.items()})
        rates = {"learning_rate": self._learning_rate(), "images_per_second": images_per_second}
        self.summaries.write_scalars("validation", number, {f"epoch_{k}": v for k, v in validation.items()} | rates)
        self.summaries.write_predictions(number, examples, predicted)
        self.summaries.flush()
        self.progress.say(
            f"epoch {math.ceil(number / self.steps_per_epoch)} step {number} "
            f"loss {train['loss']:.4f} accuracy {train['accuracy']:.4f} "
            f"validation loss {validation['loss']:.4f} accuracy {validation['accuracy']:.4f}"
        )

    def _compute_metrics(self, examples):
        """Returns: a dict of metrics, predicted labels, images per second but for the step's own metrics."""
        start = time.perf_counter()
        logits = self.predict_logits(examples.images).numpy()
        metrics = compute_metrics(logits, examples.labels)
        images_per_second = len(logits) / (time.perf_counter() - start)
        extra = {name: float(value) for name, value in self.step.extra_metrics(*examples).items()}
        return metrics | extra, logits.argmax(axis=1), images_per_second

    def save(self):
        """Saves a checkpoint if anything is new since the last."""
        now = (self.step_number, len(self.state["history"]))
        if now == self.saved:
            return
        self.summaries.flush()
        try:
            checkpoint.save(self.directory, self.step, self.state, self.keep_checkpoints)
        except checkpoint.NotFinite as error:
            raise self._not_finite(f"{error} is not finite at step {self.step_number}") from None
        self.saved = now

    def results(self, epochs):
        """The content of `results.json`."""
        state, test = self.state, self.dataset.test
        last = {name: value for name, value in state["history"][-1].items() if name != "step"}
        if test is self.dataset.validation:
            prefix = "validation_"
            metrics = {name.removeprefix(prefix): last[name] for name in last if name.startswith(prefix)}
        else:
            metrics, _, _ = self._compute_metrics(test)
        return {
            "dataset": self.dataset.name,
            "parameters": self.step.model.count_params(),
            "seed": self.step.seed,
            "epochs": epochs,
            "steps": self.step_number,
            "batch_size": self.batch_size,
            "train_seconds": state["seconds"],
            "images_per_second": state["images"] / state["seconds"],
            **last,
            **{f"test_{name}": value for name, value in metrics.items()},
        }

    def _learning_rate(self):
        return float(keras.ops.convert_to_numpy(self.step.optimizer.learning_rate))

    def _not_finite(self, what):
        last = f"ckpt-{self.saved[0]} is the last good checkpoint" if self.saved[0] else "no checkpoint was saved yet"
        return Error(f"{what}; {last}. Try a lower --learning_rate in another --workdir.")
