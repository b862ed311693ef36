"""Writes what people read of a run: event files, metrics.jsonl, lines of progress, results.json, a profile."""

import contextlib
import json
import os

from mnist import Error, checkpoint, files
from mnist.cli import Interrupted, Progress
from mnist.data import NAMES
from mnist.model import describe_model, probe, rebuild, summarize_model
from mnist.run import provenance
from mnist.run.profiler import Profiler
from mnist.settings import settings_of, values_of
from mnist.summaries import Summaries, hparams_of

import numpy as np


class Recorder:
    """The recorder of the chief, a context manager that locks the run's folder. It writes files from `begin` on.

    Args:
      workdir: the run's folder as it was given.
      plan: the run's `Plan`.
      flags_text: a string. The content of flags.txt. Empty: no such file.
      shown: a dict. The hyperparameters in TensorBoard, as `hparams_of` returns them. None: of the settings.
    """

    is_silent = False

    def __init__(self, workdir, plan, flags_text="", shown=None):
        self._folder = os.path.abspath(workdir)  # stays right if the step changes the working directory
        self._workdir, self._plan, self._flags_text, self._shown = workdir, plan, flags_text, shown
        self._progress, self._profiler = Progress(plan), Profiler(self._folder, plan.profiled)
        self._summaries, self._began = None, False  # before `begin`
        self._not_finite = set()  # names of scalars that a line has reported

    def __enter__(self):
        self._held = contextlib.ExitStack()
        self._held.enter_context(files.lock(self._folder))
        return self

    def __exit__(self, kind, *_):
        with self._held:
            self._progress.close()
            self._profiler.close()
            if self._summaries:
                self._summaries.close()
            failed = kind and issubclass(kind, Exception) and kind is not Interrupted
            if failed and self._began and not checkpoint.steps(os.path.join(self._folder, "checkpoints")):
                with contextlib.suppress(OSError):  # so that the next start does not take the flags of this one
                    os.remove(os.path.join(self._folder, "flags.txt"))

    @property
    def closed(self):
        """A bool. The reader of stdout has left."""
        return self._progress.closed

    def say(self, text):
        """Prints a line."""
        self._progress.say(text)

    def introduce(self, step, dataset, inspection, start_step):
        """Prints the data, the model, the folder and the first step. A new run also prints the `data.Inspection`.

        Raises: `mnist.Error` if a new run would replace the results of a run whose checkpoints were deleted.
        """
        name, model = type(step.model).__name__, step.eval_model
        if not start_step and os.path.exists(os.path.join(self._folder, "results.json")):
            raise Error(
                f"{self._workdir} has results.json, but no checkpoint to resume: delete that file to train it again, "
                "or take another --workdir."
            )
        if not start_step and os.path.exists(os.path.join(self._folder, "metrics.jsonl")):
            self.say(f"{self._workdir} has metrics.jsonl, but no checkpoint to resume: it begins again at step 0.")
        images = f"{len(dataset.train.labels):,} training images, {len(dataset.test.labels):,} test images"
        self.say(f"{dataset.name}: {images}")
        for found in () if start_step else (*inspection.wrong, *inspection.odd):
            self.say(found)
        self.say(f"{name}: {step.model.count_params():,} parameters")
        try:
            rebuild(describe_model(model), [v.numpy() for v in model.variables], probe(model), f"the {name}")
        except Error as error:
            self.say(f"{error} It trains and resumes; other commands cannot evaluate or export it.")
        values, last_step = values_of(step), self._plan.last_step
        for name, setting in settings_of(type(step)).items():
            value = values[name]
            if setting.is_step and value is not None and value > last_step:
                self.say(f"--{name}={value}: the run ends before, at step {last_step:,}.")
        self.say(f"workdir: {self._workdir}" + (f", resuming from step {start_step:,}" if start_step else ""))

    def open_writer(self):
        """Opens the event file of the training set. Returns: its `tf.summary` writer, for the step's own summaries."""
        self._summaries = self._summaries or Summaries(self._folder)
        return self._summaries.writer

    def begin(self, state, step, dataset, graph):
        """Writes flags.txt and model.txt, and opens all files, for a run that goes on from a `RunState`.

        The graph is the graph of the step.
        """
        self._began = True
        if self._flags_text:
            files.write_atomically(os.path.join(self._folder, "flags.txt"), self._flags_text)
        files.write_atomically(os.path.join(self._folder, "model.txt"), summarize_model(step.model) + "\n")
        path = os.path.join(self._folder, "changes.diff")
        if changes := provenance.changes(state.provenance):
            files.write_atomically(path, changes)
        else:
            files.remove(path)
        files.remove(os.path.join(self._folder, "results.json"))  # because the run is no longer finished
        lines = map(self._line, state.history, state.times)  # drops evaluations later than the checkpoint
        files.write_atomically(os.path.join(self._folder, "metrics.jsonl"), "".join(lines))
        self.open_writer()
        digest = state.dataset_sha256[:8]
        # Two folders of one name may hold other data. A name that `data.load` gives means one data set.
        shown = {
            "dataset": (dataset.name, "mnist"),
            "dataset_sha256": (digest, digest if dataset.name in NAMES else None),
        }
        shown |= self._shown or hparams_of(step, self._plan)
        self._summaries.begin(state.step, shown, self._workdir)
        if not state.step:
            self._summaries.describe(step, dataset, self._flags_text, state.provenance, graph)

    def profiling(self, step_number, num_steps):
        """Returns a context manager that profiles, if it is time, `num_steps` steps after step `step_number`."""
        return self._profiler.loop(step_number, num_steps)

    def write_steps(self, first, done, scalars, rates, looks):
        """Writes `done` steps from step `first` on: scalars, learning rates, and what `View.take` returned.

        The scalars are a dict of float32 arrays `[steps]`. The last step is not done if its loss is not finite.
        """
        curves = {f"batch/{name}": values[:done] for name, values in scalars.items()}
        self._summaries.write_steps(first, curves | {"rates/learning_rate": rates[:done]})
        self._summaries.write_looks(looks)
        if done < len(rates):
            self._summaries.flush()

    def report_steps(self, state, scalars, images_per_second, steps_per_second):
        """Shows the progress after some steps, given their scalars. Names, once, each scalar that is not finite."""
        first = state.step + 1 - len(scalars["loss"])
        for name in scalars.keys() - self._not_finite:
            if (wrong := np.flatnonzero(~np.isfinite(scalars[name]))).size:
                self._not_finite.add(name)
                self.say(f"{name} is {scalars[name][wrong[0]]} at step {first + wrong[0]}, so its mean is null.")
        self._summaries.write_scalars("train", state.step, {"speed/images_per_second": images_per_second})
        self._progress.update(state.step, state.means, images_per_second, steps_per_second)

    def writing(self, part, step_number):
        """Returns a context manager that makes `tf.summary` write about a part of the data, such as "validation"."""
        return self._summaries.writing(part, step_number) if self._summaries else contextlib.nullcontext()

    def write_evaluation(self, state, train, measured, dataset, model):
        """Writes and prints the newest evaluation. `train` is a dict of means, `measured` a `Measured`."""
        entry, number = state.history[-1], state.step
        self._summaries.write_evaluation(number, train, measured, dataset.validation, dataset.classes, model)
        self._summaries.flush()
        path = os.path.join(self._folder, "metrics.jsonl")
        files.append(path, self._line(entry, state.seconds))
        if number:
            self.say(
                f"epoch {self._plan.epoch_of(number)} step {number} "
                f"loss {train['loss']:.4f} accuracy {train['accuracy']:.4f} "
                f"validation loss {entry['validation_loss']:.4f} accuracy {entry['validation_accuracy']:.4f}"
            )

    def _line(self, entry, seconds):
        position = {"step": entry["step"], "epoch": self._plan.epoch_of(entry["step"]), "seconds": round(seconds, 3)}
        return json.dumps(files.without_nan(position | entry)) + "\n"

    def flush(self):
        """Writes buffered events to disk, so that no checkpoint is ahead of the event files."""
        self._summaries.sync()

    def report_deleted(self):
        """Prints which files were deleted while the run trained, because what the run writes to them is lost."""
        names = ("train", "validation", "model.txt")
        if gone := [name for name in names if not os.path.exists(os.path.join(self._folder, name))]:
            self.say(f"{', '.join(gone)} of {self._workdir} was deleted under way and is lost.")

    def write_results(self, state, results, dataset, model):
        """Writes results.json. Writes test metrics, HParams and Projector if the event files are open."""
        if self._summaries:
            if dataset.test is not dataset.validation:
                tests = {name: value for name, value in results.items() if name.startswith("test_")}
                tests = {f"epoch/{name.removeprefix('test_')}": value for name, value in tests.items()}
                self._summaries.write_scalars("test", state.step, tests)
            self._summaries.write_results(state.step, results, state.history)
            self._summaries.write_features(model, dataset.validation, dataset.classes)
        text = json.dumps(files.without_nan(results), indent=2) + "\n"
        files.write_atomically(os.path.join(self._folder, "results.json"), text)


class SilentRecorder:
    """The recorder of a worker that is not the chief. It writes and prints nothing."""

    closed, is_silent = False, True
    open_writer = None  # so that the step does not write either

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

    say = introduce = begin = write_steps = report_steps = write_evaluation = _ignore
    flush = report_deleted = write_results = _ignore
