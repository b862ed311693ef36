"""Trains a model on MNIST: python -m mnist.train --workdir=runs/first --epochs=5"""

import contextlib
import functools
import glob
import inspect
import os
import shlex
import shutil
import signal
import sys
import threading
import time

from mnist import Error, checkpoint, data, finished
from mnist.cli import Interrupt, flagfile, in_short, read_flags, run, say
from mnist.data import NUM_CLASSES
from mnist.distributed import is_chief, start
from mnist.loop import Interrupted, train_and_evaluate
from mnist.machine import num_threads, restart_portable
from mnist.model import CNN, Optimizer, Rate, being_imported, count_on, make_learning_rate, make_optimizer
from mnist.run import Plan, overfit
from mnist.settings import Setting, check_own_settings, local_path, settings_of
from mnist.step import TrainStep

import keras
import tensorflow as tf
from absl import flags

_data, _speed, _output = (functools.partial(Setting, group=group) for group in ("data", "speed", "output"))


class Launch:
    """The flags of a training command that neither the plan, the optimizer nor the step declares."""

    workdir = _output(
        None,
        "Folder of the run. A folder that holds a run is resumed, with the flags of that run for those not given. "
        "Default: runs/<date-time>.",
        kind=local_path,
        may_change=True,
    )
    init_from = _data(
        None,
        "Folder of a run to fine-tune. The new run starts with the weights of its newest checkpoint, as evaluated.",
        kind=local_path,
    )
    init_optimizer = _data(
        False,
        "With --init_from, continue that run at another rate, batch size or with frozen layers. Also takes its weights "
        "as trained, its averages, and its optimizer's state for the weights that both train. The schedule starts "
        "from 0, but Adam's correction of bias counts on.",
    )
    dry_run = _output(False, "Ten steps of everything: train, evaluate, save and plot.", may_change=True)
    overfit = _output(
        False,
        "Train on the first batch alone, until it is learnt or 1,000 steps are done, and write no run. Names what did "
        "not move.",
        may_change=True,
    )
    dataset = _data(
        "auto",
        "Data set to train on. auto: MNIST, or scikit-learn's 1,797 digits if MNIST cannot be found or downloaded.",
        kind=data.NAMES,
        may_change=True,  # the content is compared instead
    )
    data_dir = _data(
        None,
        "Folder or file with 28x28 grey images in 2 to 256 classes, whose names may be in classes.txt: IDX files of "
        "MNIST or EMNIST, npz, npy or CSV files, or images in train/CLASS/ and test/CLASS/. "
        "Default: the cache of Keras, or a download.",
        kind=local_path,
        may_change=True,
    )
    holdout = _data(
        0,
        "Training images, from the end, that become the validation set, so that the test set is only read once, at the "
        "end. Default 0: the test set validates, as in the classic tutorial.",
        low=0,
    )
    holdout_by = _data(
        "end",
        "Which images --holdout takes. end: the last of the training set. class: the last of each class, in proportion "
        "to its images, which suits data that are sorted by class.",
        kind=data.HOLDOUTS,
    )
    seed = _data(
        0, "Seed of the initial weights, the order of the data and the draws in the step.", low=0, high=2**31 - 1
    )
    precision = _speed(
        "float32", "Type of the arithmetic in layers. Weights and logits stay float32.", kind=("float32", "bfloat16")
    )
    intra_op_threads = _speed(
        0,
        "Threads that share one operation. The last bits of a result depend on it. "
        "Default 0: TF_NUM_INTRAOP_THREADS, or one for each core; with --slices above 1 one, so that the result does "
        "not depend on the cores.",
        low=0,
    )
    devices = _speed(
        1,
        "Devices of this process that share the slices of a batch: its GPUs if it has any, else logical CPUs. The "
        "result does not depend on it, so flags.txt leaves it out.",
        low=1,
        may_change=True,
    )
    worker_timeout = _speed(
        60,
        "Seconds within which all processes of TF_CONFIG must start. While they train, a third of it is the longest "
        "wait for an answer. 60 is enough for a slow file system.",
        low=6,
        may_change=True,
    )


def launch(step=TrainStep, *, model=CNN, optimizer=None):
    """Runs a training command, with flags for all settings.

    Does nothing while another command, as mnist.evaluate, imports the calling script for the class of its model.

    Args:
      step: `TrainStep` or a subclass, whose `Setting`s become flags of the command.
      model: a function, called under the dtype policy of --precision. It returns a built `keras.Model` from float32
        images `[B, 28, 28, 1]` in [0, 1] to logits `[B, classes]`. A parameter whose default is a `Setting` is a flag,
        as in `def make_model(rate=Setting(0.1, "Rate of dropout.", low=0, below=1))`, and gets its value. The `CNN` or
        a subclass also gets the number of classes of the data.
      optimizer: a function of the learning rate, a float or a Keras schedule, as --learning_rate, --schedule and
        --warmup give it. It returns a Keras optimizer. Default: the optimizer of --optimizer.

    Raises: RuntimeError outside of the main thread, where Python does not deliver signals. TypeError if `step` is not a
      subclass of `TrainStep`.
    """
    if being_imported():
        return
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("launch() runs a command, in the main thread alone: in another, call train_and_evaluate().")
    if not (isinstance(step, type) and issubclass(step, TrainStep)):
        raise TypeError(f"launch() takes a subclass of TrainStep, not {step!r}")
    try:
        of_model = _settings_of_model(model)
    except Error as error:
        sys.exit(f"error: {error}")
    classes = [step, of_model, Launch, Plan, Rate, *([] if optimizer else [Optimizer])]
    run(lambda _: _main(classes, step, model, of_model, optimizer), *classes)


def _settings_of_model(make_model):
    """Returns a class with the settings among the parameters of a function, or of the constructors of a class."""
    is_class, name = isinstance(make_model, type), getattr(make_model, "__name__", "model")
    if is_class and (misplaced := [*settings_of(make_model)]):
        raise Error(f"{name}.{misplaced[0]} has no effect: make the Setting the default of a parameter of __init__.")
    bases = [base for base in make_model.__mro__ if "__init__" in vars(base)] if is_class else [make_model]
    defaults = {}
    for base in bases:
        parameters = inspect.signature(vars(base)["__init__"] if is_class else base).parameters
        defaults = {name: parameter.default for name, parameter in parameters.items()} | defaults
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break  # a constructor that cannot pass on the values of others
    settings = {name: default for name, default in defaults.items() if isinstance(default, Setting)}
    cls = type("model" if name == "<lambda>" else name, (), settings)
    check_own_settings(cls)
    return cls


def _main(classes, step_class, make_model, of_model, make_own_optimizer):
    lines = flagfile.lines_of_run(flags.FLAGS.workdir) if is_chief() else {}
    flagfile.take_flags(lines)
    options = read_flags(*classes)
    if options.portable:
        restart_portable()
    workdir = options.workdir or os.path.join("runs", time.strftime("%Y%m%d-%H%M%S"))
    _set_threads(options.intra_op_threads or int(options.slices > 1 or not is_chief()))
    replicas = start(options.devices, options.slices if is_chief() else None, options.worker_timeout)
    if replicas.cluster.workers > 1:  # the chief alone reads the folder of the run
        flagfile.take_flags(replicas.cluster.agree(lines)[0])
        options = read_flags(*classes)
    if is_chief():
        if glob.glob(os.path.join(glob.escape(workdir), "*", "seed=*", "sweep.flags")):
            raise Error(f"{workdir} is the folder of a sweep: name the folder of a run, or a new one.")
        if options.resume:
            flagfile.refuse_other_flags(workdir)
    dataset = data.load(options.dataset, options.data_dir, options.holdout, options.holdout_by)
    plan_options, rate = _plan(options, len(dataset.train.labels))
    keras.utils.set_random_seed(options.seed)
    values = {name: getattr(options, name) for name in settings_of(of_model)}
    model = _make_model(make_model, options.precision, len(dataset.classes), values)
    optimizer = make_own_optimizer(rate) if make_own_optimizer else make_optimizer(options, rate)
    if make_own_optimizer and _ignores_rate(make_own_optimizer, optimizer, rate):
        _report_ignored_rate(lines)
    if options.init_optimizer:
        if not options.init_from:
            raise Error("--init_optimizer needs the run whose state it takes: give --init_from, too.")
        count_on(optimizer)
    is_new = is_chief() and not checkpoint.steps(os.path.join(workdir, "checkpoints"))
    if options.init_from and is_new:
        finished.take_weights(model, options.init_from, dataset)
    settings = {name: getattr(options, name) for name in settings_of(step_class)}
    step = step_class(model, optimizer, seed=options.seed, **settings)
    if options.init_optimizer and is_new:
        finished.take_state(step, options.init_from)
    if options.overfit:
        if replicas.cluster.workers > 1:
            raise Error("--overfit trains in one process: start it without TF_CONFIG and without Slurm.")
        return int(not overfit(step, dataset, plan_options["batch_size"]))
    known_name = dataset.name if dataset.name in data.NAMES else "auto"
    with Interrupt() as interrupt:
        try:
            results = train_and_evaluate(
                step,
                dataset,
                workdir,
                settings={"flags": flagfile.compared_flags()},
                flags_text=flagfile.flags_text(known_name, dataset.data_dir),
                hparams=flagfile.hparams(),
                interrupt=interrupt,
                replicas=replicas,
                **plan_options,
            )
        except Interrupted as stop:
            if is_chief():
                say(f"{stop}. To resume: {flagfile.command()} --workdir={shlex.quote(workdir)}")
            return 128 + (stop.signum or getattr(signal, "SIGPIPE", 13))
    if is_chief():
        if options.dry_run:
            _draw(step, dataset, results, workdir)
        metrics = [f"{name[5:]} {in_short(value)}" for name, value in results.items() if name.startswith("test_")]
        say(f"test {' '.join(metrics)}, {results['train_seconds']:.1f} s of training: {workdir}/results.json")
        say(f"{_tensorboard()} --logdir {shlex.quote(workdir)}")
    return 0


def _tensorboard():
    """Returns the shell command that starts the TensorBoard of this Python, without a path if the shell finds it."""
    folder = os.path.dirname(sys.executable)
    beside = shutil.which("tensorboard", path=folder)
    if beside is None:  # installed for the user, or found in another environment
        return f"{shlex.quote(sys.executable)} -m tensorboard.main"
    if shutil.which("tensorboard") == beside:
        return "tensorboard"
    with contextlib.suppress(FileNotFoundError):  # the current folder may be gone
        beside = beside.removeprefix(os.path.join(os.getcwd(), ""))
    return shlex.quote(beside)


def _set_threads(threads):
    """Sets the threads that share one operation. 0 leaves TensorFlow's default.

    Raises: `mnist.Error` if TensorFlow has computed already, because it fixes the number then.
    """
    if threads not in (0, num_threads()):
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError:
            raise Error(
                f"--intra_op_threads={threads} has no effect, because TensorFlow has computed already: make "
                "tensors and variables in functions and in __init__, not while a module is imported."
            ) from None


def _plan(options, num_examples):
    """Returns the options of the `Plan`, a dict, and the learning rate for the optimizer.

    A dry run has the learning rates of the whole run, and ends after ten steps.
    """
    plan_options = {name: getattr(options, name) for name in settings_of(Plan)}
    total_steps = Plan(num_examples, **{**plan_options, "profile": None}).last_step
    if options.dry_run:
        plan_options |= {"epochs": 1, "max_steps": min(total_steps, 10)}
    return plan_options, make_learning_rate(options.schedule, options.learning_rate, total_steps, options.warmup)


def _make_model(make_model, precision, num_classes, values):
    """Returns a new model of some settings with the dtype policy of --precision. A `CNN` gets `num_classes` outputs."""
    is_cnn = isinstance(make_model, type) and issubclass(make_model, CNN)
    if is_cnn and num_classes != NUM_CLASSES and make_model.takes_num_classes():
        values = values | {"num_classes": num_classes}
    before = keras.config.dtype_policy()  # of the whole process
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        return make_model(**values)
    finally:
        keras.config.set_dtype_policy(before)


def _ignores_rate(make_own_optimizer, optimizer, rate):
    """Returns whether an optimizer is the same for another learning rate."""
    if not isinstance(optimizer, keras.optimizers.Optimizer) or getattr(optimizer, "_learning_rate", None) is rate:
        return False
    other = make_own_optimizer(rate / 2 if isinstance(rate, float) and rate else 0.5)
    return checkpoint.plain(optimizer) == checkpoint.plain(other)


def _report_ignored_rate(lines):
    """Prints which flags have no effect. Raises: `mnist.Error` if one was given, and is not in the `lines_of_run`."""
    names = [*settings_of(Rate)]
    ignores = "the function of optimizer= ignores the learning rate that it gets"
    own = [flags.FLAGS[name] for name in names if name not in lines]
    if given := [flag.name for flag in own if flag.present or flag.value != flag.default]:
        raise Error(f"--{given[0]} has no effect, because {ignores}: leave out the flag, or use the rate there.")
    flagfile.set_without_effect(names)
    if is_chief():
        say(f"{ignores}, so that {', '.join(f'--{name}' for name in names)} have no effect")


def _draw(step, dataset, results, workdir):
    from mnist.summaries import pictures

    history = [{"step": results["steps"], **results}]
    drawn = pictures.draw_run(step.eval_model, dataset.test, dataset.classes, history)
    for path in pictures.save_pictures(drawn, os.path.join(workdir, "plots")):
        say(f"wrote {path}")


if __name__ == "__main__":
    launch()
