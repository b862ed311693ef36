"""Trains a model on MNIST: python -m mnist.train --workdir=runs/first --epochs=5"""

import contextlib
import functools
import os
import shlex
import signal
import threading
import time

from mnist import Error, checkpoint, data, finished
from mnist.cli import Interrupt, flagfile, in_short, project_flags, run, say
from mnist.data import NUM_CLASSES
from mnist.distributed import start
from mnist.loop import Interrupted, train_and_evaluate
from mnist.machine import num_threads
from mnist.model import CNN, Optimizer, Rate, being_imported, make_learning_rate, make_optimizer
from mnist.run import Plan
from mnist.settings import Setting, local_path, read_flags, settings_of
from mnist.step import TrainStep

import keras
import tensorflow as tf
from absl import flags

_data, _speed, _output = (functools.partial(Setting, group=group) for group in ("data", "speed", "output"))


class Launch:
    """What a training command is told beside the plan, the optimizer and the step."""

    workdir = _output(
        None,
        "Folder of the run. One that holds a run is resumed, with its own flags for those not given. "
        "Default: runs/<date-time>.",
        kind=local_path,
        may_change=True,
    )
    init_from = _data(
        None,
        "Folder of a run whose weights this one begins with, to fine-tune them: its newest checkpoint's, as evaluated.",
        kind=local_path,
    )
    dry_run = _output(False, "A few steps of everything: train, evaluate, save, plot.", may_change=True)
    dataset = _data(
        "auto",
        "What to train on. auto: MNIST, or scikit-learn's 1,797 digits where MNIST is missing.",
        kind=data.NAMES,
        may_change=True,  # what counts is the content
    )
    data_dir = _data(
        None,
        "Folder with the four IDX files of MNIST or of a split of EMNIST, KMNIST's four npz files, or one npz file: "
        "28x28 grey images in 2 to 256 classes, their names in a classes.txt. Default: Keras' cache or a download.",
        kind=local_path,
        may_change=True,
    )
    holdout = _data(
        0,
        "Training images, from the end, that become the validation set; the test set is then read once, at the end. "
        "Default 0: the test set validates, as in the classic tutorial.",
        low=0,
    )
    seed = _data(
        0,
        "Seed of the initial weights, the order of the data and the draws within the step.",
        low=0,
        high=2**31 - 1,
    )
    precision = _speed(
        "float32", "Type of the layers' arithmetic; weights and logits stay float32.", kind=("float32", "bfloat16")
    )
    intra_op_threads = _speed(
        0,
        "Threads that share one operation; the last bits of a result depend on it. Default 0: one for each core, or "
        "as TF_NUM_INTRAOP_THREADS says; with --slices above 1 one, so that the cores have no part in the result.",
        low=0,
    )
    devices = _speed(
        1,
        "Devices of this process that share the slices of a batch: its GPUs if it has any, else logical CPUs. No part "
        "in the result, and not in flags.txt.",
        low=1,
        may_change=True,
    )
    worker_timeout = _speed(
        60,
        "Seconds in which all processes of TF_CONFIG must come up; a third of it to wait for an answer while they "
        "train. 60 bear a slow file system.",
        low=6,
        may_change=True,
    )


def launch(step=TrainStep, *, model=CNN, optimizer=None):
    """Runs a training command, with flags for all settings.

    Args:
      step: `TrainStep` or a subclass. Its `Setting`s are flags of the command.
      model: called without arguments under the dtype policy of --precision; returns a built `keras.Model` from
        float32 images `[B, 28, 28, 1]` in [0, 1] to logits `[B, classes]`. The `CNN`, or a subclass, is told how many
        classes the data have.
      optimizer: called with the learning rate, a float or a Keras schedule, as --learning_rate, --schedule and
        --warmup say; returns a Keras optimizer. Default: the one that --optimizer says.

    Does nothing where the script that calls it is imported for its model's class, as by mnist.evaluate.
    Raises: RuntimeError outside of the main thread, where no signal can be heeded and no command can end.
    """
    if being_imported():
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("launch() runs a command, in the main thread alone: in another, call train_and_evaluate().")
    if not (isinstance(step, type) and issubclass(step, TrainStep)):
        raise TypeError(f"launch() takes a subclass of TrainStep, not {step!r}")
    classes = [step, Launch, Plan, Rate, *([] if optimizer else [Optimizer])]
    run(lambda _: _main(classes, step, model, optimizer), *classes)


def _main(classes, step_class, make_model, make_own_optimizer):
    flagfile.take_flags_of_run(flags.FLAGS.workdir)
    options = read_flags(*classes)
    workdir = options.workdir or os.path.join("runs", time.strftime("%Y%m%d-%H%M%S"))
    threads = options.intra_op_threads or int(options.slices > 1)
    if threads not in (0, num_threads()):
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            raise Error(
                f"--intra_op_threads={threads} comes too late, TensorFlow has computed already: make "
                "tensors and variables in functions and in __init__, not while a module is imported."
            ) from None
    replicas = start(options.devices, options.slices, options.worker_timeout)
    is_chief = replicas.cluster.is_chief
    if options.resume and is_chief:
        flagfile.refuse_other_flags(workdir, scheduled=options.schedule != "constant")
    dataset = data.load(options.dataset, options.data_dir, options.holdout)
    plan_options = {name: getattr(options, name) for name in settings_of(Plan)}
    total_steps = Plan(len(dataset.train.labels), **{**plan_options, "profile": None}).last_step
    if options.dry_run:  # follows the schedule of the whole run, and leaves it early
        plan_options |= {"epochs": 1, "max_steps": min(total_steps, 10)}
    rate = make_learning_rate(options.schedule, options.learning_rate, total_steps, options.warmup)
    keras.utils.set_random_seed(options.seed)
    with _dtype_policy("mixed_bfloat16" if options.precision == "bfloat16" else "float32"):
        model = _fit_to(dataset.classes, make_model)()
    if options.init_from and is_chief and not checkpoint.steps(os.path.join(workdir, "checkpoints")):
        finished.take_weights(model, options.init_from)
    optimizer = make_own_optimizer(rate) if make_own_optimizer else make_optimizer(options, rate)
    settings = {name: getattr(options, name) for name in settings_of(step_class)}
    own = {name: flag.value for name, flag in project_flags().items() if not hasattr(flag, "setting")}
    step = step_class(model, optimizer, seed=options.seed, **settings)
    name = dataset.name if dataset.name in data.NAMES else "auto"
    with Interrupt() as interrupt:
        try:
            results = train_and_evaluate(
                step,
                dataset,
                workdir,
                settings=own | {"init_from": options.init_from},
                flags_text=flagfile.flags_text(name, dataset.data_dir),
                hparams=flagfile.hparams(),
                interrupt=interrupt,
                replicas=replicas,
                **plan_options,
            )
        except Interrupted as stop:
            if is_chief:
                say(f"{stop}. To resume: {flagfile.command()} --workdir={shlex.quote(workdir)}")
            return 128 + (stop.signum or getattr(signal, "SIGPIPE", 13))
    if not is_chief:
        return 0
    if options.dry_run:
        _draw(step, dataset, results, workdir)
    metrics = [f"{name[5:]} {in_short(value)}" for name, value in results.items() if name.startswith("test_")]
    say(f"test {' '.join(metrics)}, {results['train_seconds']:.1f} s of training: {workdir}/results.json")
    say(f"tensorboard --logdir {shlex.quote(workdir)}")
    return 0


def _fit_to(classes, make_model):
    """`make_model`; a `CNN` of other than ten classes with their number. An own model has the outputs that it has."""
    is_cnn = isinstance(make_model, type) and issubclass(make_model, CNN)
    if is_cnn and len(classes) != NUM_CLASSES and make_model.takes_num_classes():
        return functools.partial(make_model, num_classes=len(classes))
    return make_model


@contextlib.contextmanager
def _dtype_policy(name):
    """While entered, layers are made with this policy: it is one for the whole process."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _draw(step, dataset, results, workdir):
    from mnist.summaries import pictures

    history = [{"step": results["steps"], **results}]
    drawn = pictures.draw_run(step.eval_model, dataset.test, dataset.classes, history)
    for path in pictures.save_pictures(drawn, os.path.join(workdir, "plots")):
        say(f"wrote {path}")


if __name__ == "__main__":
    launch()
