"""The event files of a run for TensorBoard. Writing them changes no number of the training."""

import contextlib
import os
import re
import time

from mnist.files import make_folder, sync, write_errors
from mnist.metrics import count_confusions, softmax
from mnist.model import summarize_model
from mnist.summaries import tabs
from mnist.summaries.pictures import draw_accuracies, draw_confusions, draw_filters, draw_mistakes

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.pr_curve import summary as pr_curve_summary
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

_MAX_CURVES = 20  # precision-recall curves, one for each class
_SCALAR = scalar_metadata.create_summary_metadata(display_name="", description="").SerializeToString()


class Summaries:
    """The event files in `<workdir>/train`, `<workdir>/validation` and, for a run with a hold-out, `<workdir>/test`.

    A metric has the same tag in all of them, so that TensorBoard draws its curves into one chart. The first part of a
    tag names a section of the page. TensorBoard opens the first two sections by name, `batch` and `epoch`.
    """

    def __init__(self, workdir):
        self._workdir, self._writers, self._paths = workdir, {}, {}
        self._open("train")

    def _open(self, name):
        folder = os.path.join(self._workdir, name)
        with write_errors(f"write {folder}"):
            make_folder(folder)
            _rename_future_files(folder)
            self._writers[name] = tf.summary.create_file_writer(folder)
            self._paths[name] = _event_files(folder)[-1]
            sync(folder)

    @property
    def writer(self):
        """The `tf.summary` writer for what the step itself writes."""
        return self._writers["train"]

    def begin(self, start_step, values, workdir):
        """Writes the row of the HParams tab, and hides what an earlier process wrote of steps after `start_step`.

        Then TensorBoard shows each step once. A run that starts again without a checkpoint hides step 0, too.
        """
        with write_errors("write event files"):
            tabs.write_hparams(os.path.join(self._workdir, "validation"), values, workdir)
        self._open("validation")
        for name in ("train", "validation"):
            self._hide_from(name, start_step + 1 if start_step else 0)

    def _hide_from(self, name, step):
        event = event_pb2.Event(step=step)
        event.session_log.status = event_pb2.SessionLog.START
        with write_errors("write event files"):
            # tf.summary has no public function for this event, which makes TensorBoard drop events from `step` on.
            tf.raw_ops.ImportEvent(writer=self._writers[name]._resource, event=event.SerializeToString())

    @contextlib.contextmanager
    def writing(self, name, step=None):
        """Directs `tf.summary` to the event file "train", "validation" or "test" in a `with` block."""
        if name not in self._writers:
            self._open(name)
            self._hide_from(name, step)
        with write_errors("write event files"), self._writers[name].as_default(step=step):
            yield

    def describe(self, step, dataset, flags_text, provenance, graph):
        """Writes the flags, the model, the data, the provenance and the graph of the step, at step 0."""
        flags = [line.lstrip("-").split("=", 1) for line in flags_text.splitlines() if line.startswith("-")]
        texts = {
            "run/flags": _table(flags),
            "run/model": f"```\n{summarize_model(step.model)}\n```",
            "run/dataset": f"```\n{dataset.name}\n```",
            "run/provenance": _table(provenance.items()),
        }
        with self.writing("train", 0):
            for tag, text in texts.items():
                tf.summary.text(tag, text)
            tf.summary.graph(tabs.readable_graph(graph))

    def write_steps(self, first_step, scalars):
        """Writes a dict of scalars, float32 tensors `[steps]`, of consecutive steps from `first_step` on."""
        with write_errors("write event files"):
            _write_steps(self.writer._resource, tf.constant(first_step, tf.int64), scalars)

    def write_scalars(self, name, step, scalars):
        """Writes a dict of scalars at one step to the event file "train", "validation" or "test"."""
        summary = summary_pb2.Summary()
        for tag, value in scalars.items():
            summary.MergeFrom(scalar_pb(tag, value))
        with self.writing(name, step):  # one event for all, because one event each takes five times as long
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

    def write_looks(self, looks):
        """Writes a list of `(step, scalars, histograms)`, as `View.take` returns it."""
        metadata = histogram_metadata.create_summary_metadata(display_name="", description="")
        for step, scalars, histograms in looks:
            self.write_scalars("train", step, scalars)
            with self.writing("train", step):
                for tag, counts in histograms.items():
                    tf.summary.write(tag, counts, metadata=metadata)

    def write_evaluation(self, step, train, measured, examples, classes, model):
        """Writes an evaluation: scalars, pictures, and precision-recall curves of the first 20 classes.

        `train` holds the means over the epoch so far, and `measured` is the result of `Evaluator.measure`.
        """
        self.write_scalars("train", step, {f"epoch/{name}": value for name, value in train.items()})
        metrics = {f"epoch/{name}": value for name, value in measured.metrics.items()}
        speed = {"speed/evaluated_images_per_second": measured.images_per_second}
        self.write_scalars("validation", step, metrics | speed)
        predictions, shares = measured.logits.argmax(axis=1), softmax(measured.logits)
        pictures = {
            "confusion_matrix": draw_confusions(count_confusions(examples.labels, predictions, len(classes)), classes),
            "worst_mistakes": draw_mistakes(examples, measured.logits, classes),
            "accuracy_by_class": draw_accuracies(examples.labels, predictions, classes),
            "first_layer": draw_filters(model),
        }
        with self.writing("validation", step):
            for name, picture in pictures.items():
                if picture:
                    tf.summary.image(f"images/{name}", np.asarray(picture)[np.newaxis])
            for label, name in enumerate(classes[:_MAX_CURVES]):
                curve = pr_curve_summary.pb("", examples.labels == label, shares[:, label], num_thresholds=101)
                curve.value[0].tag = f"pr_curves/{name}"
                tf.summary.experimental.write_raw_pb(curve.SerializeToString())

    def write_results(self, step, results, history):
        """Writes the metrics of the HParams tab, from the content of `results.json` and of `metrics.jsonl`."""
        found = tabs.columns_of(results, history)
        self.write_scalars("validation", step, {f"results/{name}": value for name, value in found.items()})

    def write_features(self, model, examples, classes):
        """Writes the Projector tab, see `tabs.write_features`."""
        with write_errors("write event files"):
            tabs.write_features(os.path.join(self._workdir, "validation"), model, examples, classes)

    def flush(self):
        with write_errors("write event files"):
            for writer in self._writers.values():
                writer.flush()

    def sync(self):
        """Waits until all events are on disk."""
        self.flush()
        with write_errors("write event files"):
            sync(*filter(os.path.exists, self._paths.values()))  # a user may delete them under way

    def close(self):
        self.sync()
        with write_errors("write event files"):
            for writer in self._writers.values():
                writer.close()


def _table(rows):
    """Returns a Markdown table of names and values."""
    cells = [f"| {name} | `{str(value).replace('|', chr(92) + '|')}` |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *cells])


def _event_files(folder):
    """Returns the paths of the event files in a folder, in the order of their names."""
    names = sorted(name for name in os.listdir(folder) if name.startswith("events.out.tfevents."))
    return [os.path.join(folder, name) for name in names]


def _rename_future_files(folder):
    """Renames event files whose names have the current second or a later one, because a clock was ahead.

    TensorBoard reads files in the order of their names, so that events of later names would hide new events.
    """
    below = int(time.time())
    for path in reversed(_event_files(folder)):
        head, stamp, tail = re.fullmatch(r"(.*tfevents\.)(\d+)(.*?)", os.path.basename(path)).groups()
        below = min(int(stamp), below - 1)
        if below < int(stamp):
            os.replace(path, os.path.join(folder, f"{head}{below:010d}{tail}"))


# The writer is an argument, because a graph captures the writer of its trace. One trace serves all runs of a process.
@tf.function(reduce_retracing=True)
def _write_steps(writer, first_step, scalars):
    for i in tf.range(tf.size(next(iter(scalars.values())))):  # one loop, because a loop takes long to trace
        for tag, values in scalars.items():
            # tf.summary.scalar() would add the name scope of the loop to the tag.
            step = first_step + tf.cast(i, tf.int64)
            tf.raw_ops.WriteSummary(writer=writer, step=step, tensor=values[i], tag=tag, summary_metadata=_SCALAR)
