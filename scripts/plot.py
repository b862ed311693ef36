"""Draws a run's curves, predictions and confusion matrix: python scripts/plot.py --workdir=runs/NAME"""

import os

from mnist import checkpoint, data, plots, run
from mnist.evaluate import make_predict_logits

from absl import flags

flags.DEFINE_string("workdir", None, "Folder of a run.", required=True)
flags.DEFINE_string("output", None, "Folder for the three PNG files; default: <workdir>/plots.")


def main():
    workdir = flags.FLAGS.workdir
    model, metadata = checkpoint.load_model(workdir)
    test = data.load(metadata["dataset"], metadata["data_dir"]).test
    predictions = make_predict_logits(model)(test.images).numpy().argmax(axis=1)
    output = flags.FLAGS.output or os.path.join(workdir, "plots")
    for path in plots.plot_run(metadata["history"], test, predictions, output):
        print(f"wrote {path}")


if __name__ == "__main__":
    run(main)
