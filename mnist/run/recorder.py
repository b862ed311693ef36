"""Everything of a run that people read: event files, metrics.jsonl, lines of progress, results.json, a profile."""

import contextlib
import os

from mnist import Error, files
from mnist.cli import Progress
from mnist.model import describe_model, probe, rebuild, summarize_model
from mnist.run.profiler import Profiler
from mnist.run.results import MetricsFile, write_results
from mnist.settings import settings_of
from mnist.summaries import Summaries, hparams

import numpy as np


class Recorder:
    """The recorder of the process that writes. A context manager, which closes the files.

    Writes no event file and no metrics.jsonl before `begin`, so that a run that is refused leaves none.

    Args:
      workdir: folder of the run as it was given, for messages.
      plan: the `Plan` of the run.
      flags_text: content of flags.txt. Empty: no such file.
      shown: dict of hyperparameters for TensorBoard, see `hparams.write`. None: the settings of the step and the plan.

    Attributes:
      folder: the absolute path of the folder, which stays right when the step changes the working directory.
    """

    def __init__(self, workdir, plan, flags_text="", shown=None):
        self.folder = os.path.abspath(workdir)
        self._workdir, self._plan, self._flags_text, self._shown = workdir, plan, flags_text, shown
        self._progress, self._profiler = Progress(plan), Profiler(self.folder, plan.profiled)
        self._summaries = self._metrics_file = None  # before `begin`
        self._not_finite = set()  # names of scalars that a line has reported

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._progress.close()
        self._profiler.close()
        if self._summaries:
            self._summaries.close()

    @property
    def closed(self):
        """Whether the reader of stdout has left."""
        return self._progress.closed

    def say(self, text):
        """Prints a line."""
        self._progress.say(text)

    def introduce(self, step, dataset, start_step):
        """Writes flags.txt and model.txt, and prints what is trained on which data.

        Args:
          step: a `TrainStep`.
          dataset: a `data.Dataset`.
          start_step: step that the run resumes from; 0 for a new run.
        """
        name, model = type(step.model).__name__, step.eval_model
        if self._flags_text:
            files.write_atomically(os.path.join(self.folder, "flags.txt"), self._flags_text)
        files.write_atomically(os.path.join(self.folder, "model.txt"), summarize_model(step.model) + "\n")
        images = f"{len(dataset.train.labels):,} training images, {len(dataset.test.labels):,} test images"
        self.say(f"{dataset.name}: {images}")
        self.say(f"{name}: {step.model.count_params():,} parameters")
        try:
            rebuild(describe_model(model), [v.numpy() for v in model.variables], probe(model), f"the {name}")
        except Error as error:
            self.say(f"{error} It trains and resumes; other commands cannot evaluate or export it.")
        for name, setting in settings_of(type(step)).items():
            value, last_step = getattr(step, name), self._plan.last_step
            if setting.is_step and value is not None and value > last_step:
                self.say(f"--{name}={value}: the run ends before, at step {last_step:,}.")
        self.say(f"workdir: {self._workdir}" + (f", resuming from step {start_step:,}" if start_step else ""))

    def open_writer(self):
        """Opens the event file of the training set. Returns: its `tf.summary` writer, for what the step writes."""
        self._summaries = self._summaries or Summaries(self.folder)
        return self._summaries.writer

    def begin(self, state, step, dataset, graph):
        """Opens all files for a run that goes on from `state`, a `RunState`; `graph`: that of the step."""
        self._metrics_file = MetricsFile(self.folder, state, self._plan)
        self.open_writer()
        shown = {"dataset": (dataset.name, "mnist")} | (self._shown or hparams.of(step, self._plan))
        self._summaries.begin(state.step, shown, self._workdir)
        if not state.step:
            self._summaries.describe(step, dataset, self._flags_text, state.provenance, graph)

    def profiling(self, step_number, num_steps):
        """Returns a context manager around `num_steps` steps after `step_number`, which profiles those of --profile."""
        return self._profiler.loop(step_number, num_steps)

    def write_steps(self, first, done, scalars, rates, looks):
        """Writes consecutive steps to the event file.

        Args:
          first: number of the first step.
          done: number of steps to write, those before a loss that is not finite.
          scalars: dict of float32 arrays `[steps]`, the scalars of each step.
          rates: float32 `[steps]`, learning rates.
          looks: norms and histograms, as `View.take` returns them.
        """
        curves = {f"batch/{name}": values[:done] for name, values in scalars.items()}
        self._summaries.write_steps(first, curves | {"rates/learning_rate": rates[:done]})
        self._summaries.write_looks(looks)
        if done < len(rates):
            self._summaries.flush()

    def report_steps(self, state, scalars, images_per_second, steps_per_second):
        """Shows the progress after the steps whose scalars are given. Names each scalar that is not finite, once."""
        first = state.step + 1 - len(scalars["loss"])
        for name in scalars.keys() - self._not_finite:
            if (wrong := np.flatnonzero(~np.isfinite(scalars[name]))).size:
                self._not_finite.add(name)
                self.say(f"{name} is {scalars[name][wrong[0]]} at step {first + wrong[0]}, so its mean is none.")
        self._summaries.write_scalars("train", state.step, {"speed/images_per_second": images_per_second})
        self._progress.update(state.step, state.means, images_per_second, steps_per_second)

    def writing(self, part, step_number):
        """Returns a context manager in which `tf.summary` writes about a part of the data, such as "validation"."""
        return self._summaries.writing(part, step_number) if self._summaries else contextlib.nullcontext()

    def write_evaluation(self, state, train, measured, dataset, model):
        """Writes and prints the newest evaluation of `state`.

        Args:
          train: dict of means over the epoch so far; empty before the first step.
          measured: the `Measured` validation set.
          dataset: a `data.Dataset`.
          model: the evaluated model.
        """
        entry, number = state.history[-1], state.step
        self._summaries.write_evaluation(number, train, measured, dataset.validation, dataset.classes, model)
        self._summaries.flush()
        self._metrics_file.append(entry, state.seconds)
        if number:
            self.say(
                f"epoch {self._plan.epoch_of(number)} step {number} "
                f"loss {train['loss']:.4f} accuracy {train['accuracy']:.4f} "
                f"validation loss {entry['validation_loss']:.4f} accuracy {entry['validation_accuracy']:.4f}"
            )

    def write_test(self, step_number, metrics):
        """Writes metrics of the test set; a run that had finished before writes no event."""
        if self._summaries:
            self._summaries.write_scalars("test", step_number, {f"epoch/{k}": v for k, v in metrics.items()})

    def flush(self):
        """Puts on disk the event files, which no checkpoint must be ahead of."""
        self._summaries.flush()

    def report_deleted(self):
        """Names what was deleted while the run trained, because what the run writes there is lost."""
        names = ("train", "validation", "model.txt")
        if gone := [name for name in names if not os.path.exists(os.path.join(self.folder, name))]:
            self.say(f"{', '.join(gone)} of {self._workdir} was deleted under way and is lost.")

    def write_results(self, state, results, dataset, model):
        """Writes results.json, and to the event files the columns of HParams and the features of the Projector."""
        if self._summaries:
            self._summaries.write_results(state.step, results, state.history)
            self._summaries.write_features(model, dataset.validation, dataset.classes)
        write_results(results, self.folder)


class SilentRecorder:
    """The recorder of a worker that is not the chief. It writes and prints nothing."""

    closed = False
    open_writer = None  # the step, too, writes nothing

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def profiling(self, step_number, num_steps):
        return contextlib.nullcontext()

    def writing(self, part, step_number):
        return contextlib.nullcontext()

    def _ignore(self, *_):
        pass

    say = introduce = begin = write_steps = report_steps = write_evaluation = write_test = _ignore
    flush = report_deleted = write_results = _ignore
