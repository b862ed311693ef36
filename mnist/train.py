"""Trains a model on MNIST: python -m mnist.train --workdir=runs/first --epochs=5"""

import contextlib
import glob
import os
import shlex
import shutil
import signal
import sys
import time

from mnist import Error, data
from mnist.command import project_flags, run
from mnist.fingerprint import num_threads
from mnist.interrupt import Interrupt
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN, make_predict_logits
from mnist.optimizers import Optimizer, Rate, make_learning_rate, make_optimizer
from mnist.plan import Plan
from mnist.settings import Setting, read_flags, settings_of
from mnist.step import TrainStep

import keras
import tensorflow as tf
from absl import flags


class Launch:
    """What a training command is told beside the plan, the optimizer and the step."""

    workdir = Setting(
        None,
        "Folder of the run. One that holds a run is resumed, with its own flags for those not given. "
        "Default: runs/<date-time>.",
        kind=str,
        group="output",
        may_change=True,
    )
    dry_run = Setting(False, "A few steps of everything: train, evaluate, save, plot.", group="output", may_change=True)
    dataset = Setting(
        "auto",
        "What to train on. auto: MNIST, or scikit-learn's 1,797 digits where MNIST is missing.",
        kind=data.NAMES,
        group="data",
        may_change=True,  # what counts is the content
    )
    data_dir = Setting(
        None,
        "Folder with the four IDX files or an mnist.npz. Default: Keras' cache or a download.",
        kind=str,
        group="data",
        may_change=True,
    )
    holdout = Setting(
        0,
        "Training images, from the end, that become the validation set; the test set is then read once, at the end. "
        "Default 0: the test set validates, as in the classic tutorial.",
        low=0,
        group="data",
    )
    seed = Setting(
        0,
        "Seed of the initial weights, the order of the data and the draws within the step.",
        low=0,
        high=2**31 - 1,
        group="data",
    )
    precision = Setting(
        "float32",
        "Type of the layers' arithmetic; weights and logits stay float32.",
        kind=("float32", "bfloat16"),
        group="speed",
    )
    intra_op_threads = Setting(
        0,
        "Threads that share one operation; the last bits of a result depend on it. Default 0: one for each core, or "
        "as TF_NUM_INTRAOP_THREADS says.",
        low=0,
        group="speed",
    )


def launch(step=TrainStep, *, model=CNN, optimizer=None):
    """Runs a training command, with flags for all settings.

    Args:
      step: `TrainStep` or a subclass. Its `Setting`s are flags of the command.
      model: called without arguments under the dtype policy of --precision; returns a built `keras.Model` from
        float32 images `[B, 28, 28, 1]` in [0, 1] to logits `[B, 10]`.
      optimizer: called with the learning rate, a float or a Keras schedule, as --learning_rate, --schedule and
        --warmup say; returns a Keras optimizer. Default: the one that --optimizer says.
    """
    if not (isinstance(step, type) and issubclass(step, TrainStep)):
        raise TypeError(f"launch() takes a subclass of TrainStep, not {step!r}")
    classes = [step, Launch, Plan, Rate, *([] if optimizer else [Optimizer])]
    run(lambda _: _main(classes, step, model, optimizer), *classes)


def _main(classes, step_class, make_model, make_own_optimizer):
    _take_flags_of_run(flags.FLAGS.workdir)
    options = read_flags(*classes)
    workdir = options.workdir or os.path.join("runs", time.strftime("%Y%m%d-%H%M%S"))
    if options.intra_op_threads not in (0, num_threads()):
        tf.config.threading.set_intra_op_parallelism_threads(options.intra_op_threads)
    _refuse_other_flags(workdir, options)
    dataset = data.load(options.dataset, options.data_dir, options.holdout)
    plan_options = {name: getattr(options, name) for name in settings_of(Plan)}
    total_steps = Plan(len(dataset.train.labels), **{**plan_options, "profile": None}).last_step
    if options.dry_run:  # follows the schedule of the whole run, and leaves it early
        plan_options |= {"epochs": 1, "max_steps": min(total_steps, 10)}
    rate = make_learning_rate(options.schedule, options.learning_rate, total_steps, options.warmup)
    keras.utils.set_random_seed(options.seed)
    with _dtype_policy("mixed_bfloat16" if options.precision == "bfloat16" else "float32"):
        model = make_model()
    if not model.built:
        raise Error(f"the {type(model).__name__} is not built: begin it with keras.Input, or build it yourself.")
    optimizer = make_own_optimizer(rate) if make_own_optimizer else make_optimizer(options, rate)
    settings = {name: getattr(options, name) for name in settings_of(step_class)}
    step = step_class(model, optimizer, seed=options.seed, **settings)
    with Interrupt() as interrupt:
        try:
            results = train_and_evaluate(
                step,
                dataset,
                workdir,
                settings={name: flag.value for name, flag in project_flags().items() if not hasattr(flag, "setting")},
                flags_text="\n".join([_first_line(), *_flag_lines(dataset).values(), ""]),
                interrupt=interrupt,
                **plan_options,
            )
        except Interrupted as stop:
            print(f"{stop}. To resume: {_python()} {_program()} --workdir={shlex.quote(workdir)}", flush=True)
            return 128 + (interrupt.signum or getattr(signal, "SIGPIPE", 13))
    if options.dry_run:
        _draw(step, dataset, results, workdir)
    metrics = [f"{name[5:]} {value:.4f}" for name, value in results.items() if name.startswith("test_")]
    print(f"test {' '.join(metrics)}, {results['train_seconds']:.1f} s of training: {workdir}/results.json")
    print(f"tensorboard --logdir {shlex.quote(workdir)}")
    return 0


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
    from mnist import pictures

    predictions = make_predict_logits(step.eval_model)(dataset.test.images).numpy().argmax(axis=1)
    history = [{"step": results["steps"], **results}]
    for path in pictures.save_pictures(history, dataset.test, predictions, os.path.join(workdir, "plots")):
        print(f"wrote {path}")


# What a run was started with stands in its flags.txt: one flag a line, but for --workdir and --resume.


def _program():
    """How this program was started: -m MODULE, or FILE."""
    spec = sys.modules["__main__"].__spec__
    return f"-m {spec.name}" if spec else shlex.quote(sys.argv[0])


def _python():
    """The Python that runs this: after scripts/train.sh the caller's `python` is another one."""
    return "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)


def _first_line():
    return f"# python {_program()} --flagfile=<this file> --workdir=<another folder>"


def _flag_lines(dataset=None):
    """The lines of flags.txt by flag: every flag that is set, with the data set, once it is known, and the threads."""
    resolved = {"intra_op_threads": num_threads()}
    if dataset:
        resolved |= {"dataset": dataset.name if dataset.name in data.NAMES else "auto", "data_dir": dataset.data_dir}
    lines = {}
    for name, flag in project_flags().items():
        value = resolved.get(name, flag.value)
        if value is not None and name not in ("workdir", "resume"):
            lines[name] = f"--{name}={value}" if name in resolved else flag.serialize()
    return lines


def _read_flag_lines(workdir):
    """The first line of a run's flags.txt, and the others by flag; none if there is no such file."""
    path, known, lines = os.path.join(workdir, "flags.txt"), project_flags(), {}
    if not os.path.isfile(path):
        return "", {}
    with open(path) as file:
        first, *rest = file.read().splitlines() or [""]
    for line in rest:
        name = line.lstrip("-").partition("=")[0]
        if name not in known and name.startswith("no") and name[2:] in known:
            name = name[2:]
        lines[name] = f"{lines[name]}\n{line}" if name in lines else line  # a flag that is given many times
    return first, lines


def _take_flags_of_run(workdir):
    """Gives the flags that were not given the values that the run in `workdir` was started with.

    A flagfile tells all flags of a run: with one, nothing is taken.
    """
    if not workdir or any(argument.lstrip("-").startswith("flagfile") for argument in sys.argv[1:]):
        return
    first, lines = _read_flag_lines(workdir)
    known = project_flags()
    if known["epochs"].present:  # says how long the run is, whatever it was told before
        lines.pop("max_steps", None)
    for name in lines:
        if name not in known:
            started = first.lstrip("# ").partition(" --flagfile")[0]
            raise Error(f"{workdir} holds a run of another command, with --{name}: resume it with {started}.")
    flags.FLAGS(["", *(line for name in lines if not known[name].present for line in lines[name].splitlines())])


def _refuse_other_flags(workdir, options):
    """Raises `mnist.Error` if the flags are not those of the run that is to be resumed, but for what may change."""
    if not options.resume or not glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "ckpt-*")):
        return
    _, old = _read_flag_lines(workdir)
    new, known = _flag_lines(), project_flags()
    different = []
    for name in [name for name in known if old and old.get(name) != new.get(name)]:
        setting = getattr(known[name], "setting", None)
        scheduled = name in ("epochs", "max_steps") and options.schedule != "constant"
        if not (setting and setting.may_change) or scheduled:
            was, now = (_value_of(lines.get(name), name) for lines in (old, new))
            because = f" (--schedule={options.schedule} depends on it)" if scheduled else ""
            different.append(f"--{name} was {was}, is {now}{because}")
    if different:
        raise Error(
            f"{workdir} holds a run with other flags: {'; '.join(different[:3])}.\n"
            f"Resume it with --workdir={workdir} alone, or name another folder."
        )


def _value_of(line, name):
    """The value that a line of flags.txt has, as typed."""
    if line is None:
        return "not set"
    return line.partition("=")[2] or ("false" if line == f"--no{name}" else "true")


if __name__ == "__main__":
    launch()
