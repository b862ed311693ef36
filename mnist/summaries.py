"""What TensorBoard shows, and when. Summaries observe: nothing here changes the training."""

import contextlib
import glob
import os
import re
import time

from mnist.files import write_errors
from mnist.metrics import count_confusions
from mnist.pictures import draw_confusions, draw_predictions

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.scalar import metadata as scalar_metadata


class NoSummaries:
    """Those of a process that writes nothing: takes all that `Summaries` does."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


class Summaries:
    """The event files of a run, `<workdir>/train` and `<workdir>/validation`.

    What both have has the same tag, so that TensorBoard lays the curves of one over the other.

    Args:
      workdir: the run's folder.
      start_step: the step that the run resumes from. What an earlier process wrote of later steps
        is taken back, so that each step shows once: of step 0, too, if no checkpoint was saved.
    """

    def __init__(self, workdir, start_step):
        self._writers = {}
        for name in ("train", "validation"):
            folder = os.path.join(workdir, name)
            with write_errors(f"write {folder}"):
                _put_before_now(folder)
                writer = tf.summary.create_file_writer(folder)
                start = event_pb2.Event(step=start_step + 1 if start_step else 0)
                start.session_log.status = event_pb2.SessionLog.START
                # tf.summary has no public call for the event that makes TensorBoard forget later steps.
                tf.raw_ops.ImportEvent(writer=writer._resource, event=start.SerializeToString())
                self._writers[name] = writer
        # A graph keeps the writer that it was traced with: one graph for each run.
        self._write_steps = tf.function(_write_steps, reduce_retracing=True)

    @contextlib.contextmanager
    def _writing(self, name, step=None):
        with write_errors("write event files"), self._writers[name].as_default(step=step):
            yield

    def describe(self, texts):
        """Writes texts, a dict from tag to Markdown, at step 0."""
        with self._writing("train", 0):
            for tag, text in texts.items():
                tf.summary.text(tag, text)

    def describe_graph(self, graph):
        """Writes the graph of the step, at step 0."""
        with self._writing("train", 0):
            tf.summary.graph(graph)

    def write_steps(self, first_step, scalars):
        """Writes scalars of consecutive steps.

        Args:
          first_step: the step of the first element.
          scalars: a dict from tags to float32 tensors `[steps]`.
        """
        with self._writing("train"):
            self._write_steps(tf.constant(first_step, tf.int64), scalars)

    def write_scalars(self, name, step, scalars):
        """Writes a dict of scalars at one step; `name` is "train" or "validation"."""
        with self._writing(name, step):
            for tag, value in scalars.items():
                tf.summary.scalar(tag, value)

    def write_predictions(self, step, examples, predictions, classes):
        """Writes the first 25 validation images with label and prediction, and the confusion matrix, by class name."""
        with self._writing("validation", step):
            matrix = count_confusions(examples.labels, predictions, len(classes))
            drawn = draw_predictions(examples, predictions, classes=classes)
            tf.summary.image("predictions", np.asarray(drawn)[np.newaxis])
            tf.summary.image("confusion_matrix", np.asarray(draw_confusions(matrix, classes))[np.newaxis])

    def flush(self):
        for writer in self._writers.values():
            with write_errors("write event files"):
                writer.flush()

    def close(self):
        for writer in self._writers.values():
            with write_errors("write event files"):
                writer.close()


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


def _write_steps(first_step, scalars):
    metadata = scalar_metadata.create_summary_metadata(display_name="", description="")
    for i in tf.range(tf.size(next(iter(scalars.values())))):  # one loop: it takes long to trace
        for tag, values in scalars.items():
            # tf.summary.scalar() would put the loop's name scope into the tag.
            tf.summary.write(tag, values[i], first_step + tf.cast(i, tf.int64), metadata)
