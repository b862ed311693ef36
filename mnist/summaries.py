"""What TensorBoard shows, and when. Summaries observe: nothing here changes the training."""

import contextlib
import os

from mnist.files import write_errors

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.scalar import metadata as scalar_metadata


class Summaries:
    """The event files of a run, `<workdir>/train` and `<workdir>/validation`.

    Both have the same tags, so that TensorBoard lays the curves of one over the other.

    Args:
      workdir: the run's folder.
      start_step: the step that the run goes on from. What an earlier process wrote of later steps
        is taken back, so that each step shows once.
    """

    def __init__(self, workdir, start_step):
        self._writers = {}
        for name in ("train", "validation"):
            with write_errors(f"write {os.path.join(workdir, name)}"):
                writer = tf.summary.create_file_writer(os.path.join(workdir, name))
                start = event_pb2.Event(step=start_step + 1)
                start.session_log.status = event_pb2.SessionLog.START
                # tf.summary has no public call for the event that makes TensorBoard forget later steps.
                tf.raw_ops.ImportEvent(writer=writer._resource, event=start.SerializeToString())
                self._writers[name] = writer
        # A graph keeps the writer that it was traced with: one graph for each run.
        self._write_batches = tf.function(_write_batches, reduce_retracing=True)

    @contextlib.contextmanager
    def _writing(self, name, step=None):
        with write_errors("write event files"), self._writers[name].as_default(step=step):
            yield

    def describe(self, texts, train_step, batch_spec):
        """Writes texts (a dict from tag to Markdown) and the graph of `train_step`, at step 0."""
        with self._writing("train", 0):
            for tag, text in texts.items():
                tf.summary.text(tag, text)
            tf.summary.graph(train_step.get_concrete_function(*batch_spec).graph)

    def write_batches(self, first_step, scalars):
        """Writes the scalars of consecutive steps, `batch_<name>` for each key.

        Args:
          first_step: the step of the first element.
          scalars: a dict from names to float32 tensors `[steps]`.
        """
        with self._writing("train"):
            self._write_batches(tf.constant(first_step, tf.int64), scalars)

    def write_scalars(self, name, step, scalars):
        """Writes a dict of scalars at one step; `name` is "train" or "validation"."""
        with self._writing(name, step):
            for tag, value in scalars.items():
                tf.summary.scalar(tag, value)

    def write_predictions(self, step, examples, predictions):
        """Writes the first 25 validation images with label and prediction, and the confusion matrix."""
        with self._writing("validation", step):
            tf.summary.image("predictions", draw_predictions(examples, predictions)[np.newaxis])
            matrix = count_confusions(examples.labels, predictions)
            tf.summary.image("confusion_matrix", draw_confusions(matrix)[np.newaxis])

    def flush(self):
        for writer in self._writers.values():
            with write_errors("write event files"):
                writer.flush()

    def close(self):
        for writer in self._writers.values():
            with write_errors("write event files"):
                writer.close()


def _write_batches(first_step, scalars):
    metadata = scalar_metadata.create_summary_metadata(display_name="", description="")
    for name, values in scalars.items():
        for i in tf.range(tf.size(values)):
            # tf.summary.scalar() would put the loop's name scope into the tag.
            tf.summary.write(f"batch_{name}", values[i], first_step + tf.cast(i, tf.int64), metadata)


def count_confusions(labels, predictions):
    """Counts predictions `[N]` for labels `[N]`: int64 `[10, 10]`, row: label, column: prediction."""
    return np.bincount(np.asarray(labels, np.int64) * 10 + predictions, minlength=100).reshape(10, 10)


def draw_predictions(examples, predictions, columns=5):
    """Draws the first images, each with its own label and prediction; wrong ones in red.

    Drawn with Pillow: matplotlib takes half a second for this, a tenth of an epoch.

    Returns: uint8 `[H, W, 3]`.
    """
    cell, text = 84, 20
    count = min(columns * columns, len(examples.labels))
    canvas = Image.new("RGB", (columns * cell, -(-count // columns) * (cell + text)), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    for i in range(count):
        x, y = i % columns * cell, i // columns * (cell + text)
        label, prediction = int(examples.labels[i]), int(predictions[i])
        canvas.paste(Image.fromarray(examples.images[i, :, :, 0]).resize((cell - 4, cell - 4)), (x + 2, y + text))
        colour = "black" if label == prediction else "red"
        draw.text((x + 4, y + 4), f"true {label} pred. {prediction}", colour, font)
    return np.asarray(canvas)


def draw_confusions(matrix):
    """Draws a confusion matrix `[10, 10]` (row: label, column: prediction). Returns: uint8 `[H, W, 3]`."""
    cell = 40
    canvas = Image.new("RGB", (11 * cell, 11 * cell), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(12)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    draw.text((3, 3), "label\\pred.", "black", ImageFont.load_default(7))
    for i in range(10):
        middle = (i + 1.5) * cell
        draw.text((middle, cell / 2), str(i), "black", font, anchor="mm")
        draw.text((cell / 2, middle), str(i), "black", font, anchor="mm")
        for j in range(10):
            # A square root makes single mistakes visible beside thousands of hits.
            shade = int(255 * (1 - shares[i, j] ** 0.5))
            left, top = (j + 1) * cell, (i + 1) * cell
            draw.rectangle((left, top, left + cell, top + cell), (shade, shade, 255), "lightgrey")
            colour = "white" if shade < 128 else "black"
            draw.text((left + cell / 2, top + cell / 2), str(matrix[i, j]), colour, font, anchor="mm")
    return np.asarray(canvas)
