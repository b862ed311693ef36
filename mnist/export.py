"""Exports the model of a run as a SavedModel: python -m mnist.export --workdir=runs/NAME [--output=FOLDER]"""

import os
import tempfile

from mnist import Error, files, finished
from mnist.command import run
from mnist.model import IMAGE_SHAPE, scale_images
from mnist.settings import Setting, local_path

import tensorflow as tf


class Served(tf.Module):
    """What is exported: uint8 images `[N, 28, 28, 1]` -> logits, probabilities `[N, 10]`, digit `[N]`."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.weights = [v.value for v in model.variables]  # tracked by name; Keras lists are not

    @tf.function(input_signature=[tf.TensorSpec([None, *IMAGE_SHAPE], tf.uint8, "images")])
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


class Export:
    """What is exported, and where to."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    output = Setting(None, "Folder to write. Default: <workdir>/saved_model.", kind=local_path)


def main(options):
    trained = finished.load(options.workdir)
    output = options.output or os.path.join(options.workdir, "saved_model")
    export(trained.model, output)
    print(f"wrote {output} (step {trained.step})")


if __name__ == "__main__":
    run(main, Export)
