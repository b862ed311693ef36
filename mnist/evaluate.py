"""Exact metrics over every example: python -m mnist.evaluate --workdir=runs/NAME

The evaluation loss lives here, out of reach of what training does to its own loss and labels.
"""

from mnist import checkpoint, data, run
from mnist.step import scale_images

import numpy as np
import tensorflow as tf
from absl import flags


def make_predict_logits(model, batch_size=500):
    """Compiles inference over many images.

    Returns: a function from uint8 images `[N, 28, 28, 1]`, any N >= 1, to float32 logits `[N, 10]`.
      Every image counts: the last batch is as short as it needs to be.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.uint8)])
    def predict_logits(images):
        num_examples = tf.shape(images)[0]
        num_batches = -(-num_examples // batch_size)
        logits = tf.TensorArray(tf.float32, num_batches, element_shape=[None, 10], infer_shape=False)
        for i in tf.range(num_batches):
            batch = scale_images(images[i * batch_size : (i + 1) * batch_size])
            logits = logits.write(i, tf.cast(model(batch, training=False), tf.float32))
        return logits.concat()

    return predict_logits


def compute_metrics(logits, labels):
    """Mean cross-entropy and accuracy of logits `[N, 10]` on integer labels `[N]`, as floats.

    Summed over all examples in float64, then divided, so that the batch size of the evaluation has
    no part in it.
    """
    logits = np.asarray(logits, np.float64)
    labels = np.asarray(labels, np.int64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    correct = logits.argmax(axis=1) == labels
    return {"loss": float(losses.sum() / len(labels)), "accuracy": float(correct.sum() / len(labels))}


class RunningMeans:
    """Means over the steps of an epoch by Keras' definition: weighted by batch size, in float32.

    Args:
      totals: a dict from names to sums so far. count: number of images so far.
    """

    def __init__(self, totals=None, count=0):
        self.totals = dict(totals or {})
        self.count = count

    def add(self, scalars, batch_sizes):
        """Adds consecutive steps: a dict of float32 arrays `[steps]`, and their batch sizes `[steps]`."""
        weights = np.asarray(batch_sizes, np.float32)
        for name, values in scalars.items():
            # cumsum adds one after the other, as Keras' metric does; sum() would pair them up.
            terms = np.concatenate([[self.totals.get(name, 0.0)], values * weights]).astype(np.float32)
            self.totals[name] = float(np.cumsum(terms, dtype=np.float32)[-1])
        self.count += int(np.sum(batch_sizes))

    def means(self):
        return {name: float(np.float32(total) / np.float32(self.count)) for name, total in self.totals.items()}


def main():
    from sklearn.metrics import classification_report, confusion_matrix

    flag = flags.FLAGS
    model, metadata = checkpoint.load_model(flag.workdir)
    if flag.dataset or flag.data_dir:
        test = data.load(flag.dataset or "auto", flag.data_dir).test
    else:
        test = data.load(metadata["dataset"], metadata["data_dir"]).test
    logits = make_predict_logits(model, flag.eval_batch_size)(test.images).numpy()
    metrics = compute_metrics(logits, test.labels)
    predictions = logits.argmax(axis=1)
    digits = list(range(data.NUM_CLASSES))
    print(f"step {metadata['step']}, {len(test.labels):,} test images")
    print(f"loss {metrics['loss']:.6f}, accuracy {metrics['accuracy']:.4f}\n")
    print(classification_report(test.labels, predictions, labels=digits, digits=4, zero_division=0))
    print("confusion matrix (row: label, column: prediction)")
    for digit, row in enumerate(confusion_matrix(test.labels, predictions, labels=digits)):
        print(f"{digit}: " + " ".join(f"{count:5d}" for count in row))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_string("data_dir", None, "Other data to evaluate on; default: the run's own.")
    flags.DEFINE_enum("dataset", None, data.NAMES[1:], "Other data set to evaluate on; default: the run's.")
    flags.DEFINE_integer("eval_batch_size", 500, "Images at a time; has no part in the result.", lower_bound=1)
    run(main)
