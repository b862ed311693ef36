"""Draws a run's curves, predictions and confusion matrix: python scripts/plot.py --workdir=runs/NAME"""

import os

from mnist import finished, pictures
from mnist.command import run
from mnist.model import make_predict_logits
from mnist.settings import Setting, local_path


class Plot:
    """What is drawn, and where to."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    output = Setting(None, "Folder for the three PNG files. Default: <workdir>/plots.", kind=local_path)


def main(options):
    trained = finished.load(options.workdir)
    trained.check_labels(trained.data)
    test = trained.data.test
    predictions = make_predict_logits(trained.model)(test.images).numpy().argmax(axis=1)
    output = options.output or os.path.join(options.workdir, "plots")
    for path in pictures.save_pictures(trained.history, test, predictions, output, trained.classes):
        print(f"wrote {path}")


if __name__ == "__main__":
    run(main, Plot)
