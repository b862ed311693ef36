"""What TensorBoard shows, and when. Summaries observe: nothing here changes the training."""

import collections
import contextlib
import glob
import io
import os
import re
import time

from mnist.files import write_errors
from mnist.metrics import count_confusions, precision_recall, softmax
from mnist.model import summarize_model
from mnist.summaries import hparams, projector
from mnist.summaries.pictures import draw_accuracies, draw_confusions, draw_filters, draw_mistakes

import tensorflow as tf
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.pr_curve import metadata as pr_curve_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb

_MAX_CURVES = 20  # classes with a precision-recall curve each
_SCALAR = scalar_metadata.create_summary_metadata(display_name="", description="").SerializeToString()


class Summaries:
    """The event files of a run, `<workdir>/train`, `<workdir>/validation`, and `<workdir>/test` beside a hold-out.

    What these have in common has the same tag, so that TensorBoard lays the curves of one over the other. A section of
    its page is what stands before the first `/` of a tag, and the first two by name open by themselves: `batch`,
    `epoch`.

    Args:
      workdir: the run's folder.
    """

    def __init__(self, workdir):
        self._workdir, self._writers = workdir, {}
        self._open("train")

    def _open(self, name):
        folder = os.path.join(self._workdir, name)
        with write_errors(f"write {folder}"):
            _put_before_now(folder)
            self._writers[name] = tf.summary.create_file_writer(folder)

    @property
    def writer(self):
        """The `tf.summary` writer of what the step itself writes."""
        return self._writers["train"]

    def begin(self, start_step, values, workdir):
        """Writes the row of the run in the HParams tab, and takes back what was written of steps after `start_step`.

        So each step shows once: step 0, too, if no checkpoint was saved.

        Args:
          values, workdir: as of `hparams.write`.
        """
        with write_errors("write event files"):
            hparams.write(os.path.join(self._workdir, "validation"), values, workdir)
        self._open("validation")
        for name in ("train", "validation"):
            self._take_back(name, start_step + 1 if start_step else 0)

    def _take_back(self, name, step):
        event = event_pb2.Event(step=step)
        event.session_log.status = event_pb2.SessionLog.START
        with write_errors("write event files"):
            # tf.summary has no public call for the event that makes TensorBoard forget later steps.
            tf.raw_ops.ImportEvent(writer=self._writers[name]._resource, event=event.SerializeToString())

    @contextlib.contextmanager
    def writing(self, name, step=None):
        """While entered, `tf.summary` writes to the event file of a part of the data."""
        if name not in self._writers:
            self._open(name)
            self._take_back(name, step)
        with write_errors("write event files"), self._writers[name].as_default(step=step):
            yield

    def describe(self, step, dataset, flags_text, provenance, graph):
        """Writes the flags, the model, the data, where all comes from and the graph of the step, at step 0."""
        flags = [line.lstrip("-").split("=", 1) for line in flags_text.splitlines() if line.startswith("-")]
        texts = {
            "run/flags": _table(flags),
            "run/model": f"```\n{summarize_model(step.model)}\n```",  # Markdown: as typed
            "run/dataset": f"```\n{dataset.name}\n```",
            "run/provenance": _table(provenance.items()),
        }
        with self.writing("train", 0):
            for tag, text in texts.items():
                tf.summary.text(tag, text)
            tf.summary.graph(_drawn(graph))

    def write_steps(self, first_step, scalars):
        """Writes scalars of consecutive steps.

        Args:
          first_step: the step of the first element.
          scalars: a dict from tags to float32 tensors `[steps]`.
        """
        with write_errors("write event files"):
            _write_steps(self.writer._resource, tf.constant(first_step, tf.int64), scalars)

    def write_scalars(self, name, step, scalars):
        """Writes a dict of scalars at one step; `name` is "train", "validation" or "test"."""
        summary = summary_pb2.Summary()
        for tag, value in scalars.items():
            summary.MergeFrom(scalar_pb(tag, value))
        with self.writing(name, step):  # all at once: one after the other takes five times as long
            tf.summary.experimental.write_raw_pb(summary.SerializeToString())

    def write_looks(self, looks):
        """Writes what `View.take` returns."""
        metadata = histogram_metadata.create_summary_metadata(display_name="", description="")
        for step, scalars, histograms in looks:
            self.write_scalars("train", step, scalars)
            with self.writing("train", step):
                for tag, counts in histograms.items():
                    tf.summary.write(tag, counts, metadata=metadata)

    def write_evaluation(self, step, train, measured, examples, classes, model):
        """Writes an evaluation: curves, pictures, a precision-recall curve of each of the first 20 classes.

        Args:
          train: a dict of means over the epoch so far, empty before the first step.
          measured: of `Evaluator.measure`.
          examples: the validation images and labels.
          classes: the names of the classes.
          model: the evaluated model.
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
            metadata = image_metadata.create_summary_metadata(display_name="", description="")
            for name, picture in pictures.items():
                if picture:
                    tf.summary.write(f"images/{name}", _as_image(picture), metadata=metadata)
            for label, name in enumerate(classes[:_MAX_CURVES]):
                counts = precision_recall(shares[:, label], examples.labels == label)
                metadata = pr_curve_metadata.create_summary_metadata("", "", counts.shape[1])
                tf.summary.write(f"pr_curves/{name}", counts, metadata=metadata)

    def write_results(self, step, results, history):
        """Writes last and best metrics and the seconds of training, the columns of the HParams tab."""
        found = hparams.results_of(results, history)
        self.write_scalars("validation", step, {f"results/{name}": value for name, value in found.items()})

    def write_features(self, model, examples, classes):
        """Writes what the Projector tab shows."""
        with write_errors("write event files"):
            projector.write(os.path.join(self._workdir, "validation"), model, examples, classes)

    def flush(self):
        for writer in self._writers.values():
            with write_errors("write event files"):
                writer.flush()

    def close(self):
        for writer in self._writers.values():
            with write_errors("write event files"):
                writer.close()


def _as_image(picture):
    """What `tf.summary.image()` writes of one picture, in less than half of its time."""
    file = io.BytesIO()
    picture.save(file, "png", compress_level=3)
    return [str(picture.width), str(picture.height), file.getvalue()]


def _table(rows):
    """A table in Markdown; each value as it is."""
    cells = [f"| {name} | `{str(value).replace('|', chr(92) + '|')}` |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *cells])


def _drawn(graph):
    """A graph as one wants to see it drawn: by the name scopes of the step, with no operation beside them."""
    definition = graph.as_graph_def()
    scopes = {scope for node in definition.node for scope in node.name.split("/")[:-1]}
    # Keras opens the scope of a layer twice: cnn_1 is what there is of cnn, unless there is cnn_3 beside it.
    bases = collections.Counter(re.sub(r"_\d+$", "", scope) for scope in scopes)

    def rename(name):
        parts = re.sub("^gradient_tape/(loss/)?", "gradients/", name).split("/")
        for i, part in enumerate(parts[:-1]):
            base = re.sub(r"_\d+$", "", part)
            parts[i] = base if bases[base] == 1 else part
        return "/".join(parts if len(parts) > 1 or parts[0] in ("images", "labels") else ["outputs", *parts])

    for node in definition.node:
        node.name = rename(node.name)
        for i, source in enumerate(node.input):
            control, name, output = re.fullmatch(r"(\^?)([^:]*)(.*)", source).groups()
            node.input[i] = f"{control}{rename(name)}{output}"
    return definition


def _put_before_now(folder):
    """Renames event files that are no older than this second by their names, as of a clock that was ahead.

    TensorBoard reads files in the order of their names: later ones would take back what comes now.
    """
    below = int(time.time())
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "events.out.tfevents.*")), reverse=True):
        head, stamp, tail = re.fullmatch(r"(.*tfevents\.)(\d+)(.*?)", os.path.basename(path)).groups()
        below = min(int(stamp), below - 1)
        if below < int(stamp):
            os.replace(path, os.path.join(folder, f"{head}{below:010d}{tail}"))


# The writer is an argument: a graph keeps what it was traced with, and one is enough for all runs of a process.
@tf.function(reduce_retracing=True)
def _write_steps(writer, first_step, scalars):
    for i in tf.range(tf.size(next(iter(scalars.values())))):  # one loop: it takes long to trace
        for tag, values in scalars.items():
            # tf.summary.scalar() would put the loop's name scope into the tag.
            step = first_step + tf.cast(i, tf.int64)
            tf.raw_ops.WriteSummary(writer=writer, step=step, tensor=values[i], tag=tag, summary_metadata=_SCALAR)
