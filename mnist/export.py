"""Exports the model of a run as a SavedModel: python -m mnist.export --workdir=runs/NAME [--output=FOLDER]"""

import os
import tempfile

from mnist import Error, checkpoint, files, run
from mnist.step import scale_images

import tensorflow as tf
from absl import flags


class Served(tf.Module):
    """What is exported: uint8 images `[N, 28, 28, 1]` -> logits, probabilities `[N, 10]`, digit `[N]`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.weights = [v.value for v in model.variables]  # tracked by name; Keras lists are not

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.uint8, "images")])
    def serve(self, images):
        logits = tf.cast(self.model(scale_images(images), training=False), tf.float32)
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "digit": tf.argmax(logits, axis=1),
        }


def export(model, output):
    """Writes a SavedModel with the signature `serving_default`; the folder is whole or not there."""
    if os.path.lexists(output):
        raise Error(f"--output={output} exists already: remove it, or name another folder.")
    served = Served(model)
    parent = os.path.dirname(os.path.abspath(output))  # abspath drops a slash at the end
    with files.write_errors(f"write {output}"):
        os.makedirs(parent, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saved_model", dir=parent) as temporary:
            whole = os.path.join(temporary, "saved_model")
            tf.saved_model.save(served, whole, signatures={"serving_default": served.serve})
            os.rename(whole, os.path.abspath(output))


def main():
    flag = flags.FLAGS
    model, metadata = checkpoint.load_model(flag.workdir)
    output = flag.output or os.path.join(flag.workdir, "saved_model")
    export(model, output)
    print(f"wrote {output} (step {metadata['step']})")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
    flags.DEFINE_string("output", None, "Folder to write; default: <workdir>/saved_model.")
    run(main)
