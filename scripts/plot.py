"""Draws a run, or the curves of several runs over each other: python scripts/plot.py --workdir=runs/NAME"""

import os

from mnist import finished
from mnist.cli import run
from mnist.settings import Setting, local_path
from mnist.summaries import pictures


class Plot:
    """What is drawn, and where to."""

    workdir = Setting(None, "Folder of a run. Given several times: their curves alone, in one.", kind=[local_path])
    checkpoint = finished.which_checkpoint()
    output = Setting(
        None,
        "Folder for the PNG files. Default: <workdir>/plots; of several runs, curves_of_all.png in that of the first.",
        kind=local_path,
    )


def main(options):
    workdirs = list(dict.fromkeys(options.workdir or [None]))
    curves = {}
    for workdir in workdirs:
        trained = finished.load(workdir, options.checkpoint)
        curves[workdir] = (trained.history, trained.batch_losses())
    if len(workdirs) > 1:
        drawn = {"curves_of_all": pictures.draw_curves(curves)}
    else:
        trained.check_labels(trained.data)
        drawn = pictures.draw_run(trained.model, trained.data.test, trained.classes, curves)
    for path in pictures.save_pictures(drawn, options.output or os.path.join(workdirs[0], "plots")):
        print(f"wrote {path}")


if __name__ == "__main__":
    run(main, Plot)
