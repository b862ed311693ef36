"""Flags, and what they start: python -m mnist.train --workdir=runs/first --epochs=5"""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import time

from mnist import Error, data, run
from mnist.evaluate import make_predict_logits
from mnist.fingerprint import num_threads
from mnist.interrupt import Interrupt
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN, summarize_model
from mnist.step import TrainStep

import keras
import tensorflow as tf
from absl import flags

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "workdir", None, "Folder of the run; a second start with the same one goes on. Default: runs/<date-time>."
)
flags.DEFINE_enum(
    "dataset", "auto", data.NAMES, "What to train on. auto: MNIST if it can be had, else scikit-learn's 1,797 digits."
)
flags.DEFINE_string(
    "data_dir", None, "Folder with the four IDX files or an mnist.npz. Default: Keras' cache or a download."
)
flags.DEFINE_integer(
    "holdout",
    0,
    "Training images, from the end, that become the validation set; the test set is then read once, at the end. "
    "Default 0: the test set validates, as in the classic tutorial.",
    lower_bound=0,
)
flags.DEFINE_integer("epochs", 5, "Passes over the training set. Five reach 99 % on MNIST.", lower_bound=1)
flags.DEFINE_integer("max_steps", None, "Steps after which to end, even within an epoch.", lower_bound=1)
flags.DEFINE_integer("batch_size", 64, "Images per step. 64 as in the classic tutorial.", lower_bound=1)
flags.DEFINE_float(
    "learning_rate",
    1e-3,
    "Adam's rate, or the schedule's peak, per step. 1e-3 is Keras' default.",
    lower_bound=0.0,
    upper_bound=1e9,
)
flags.DEFINE_enum(
    "schedule",
    "constant",
    ["constant", "cosine", "one_cycle"],
    "Learning rate over the run; cosine and one_cycle fall to 0 at its end.",
)
flags.DEFINE_integer(
    "warmup",
    None,
    "Steps of linear rise from a 25th of the rate. Default: 0; with one_cycle 30 % of all steps.",
    lower_bound=0,
)
flags.DEFINE_float(
    "beta_1", 0.9, "Adam's decay of the mean gradient. 0.9 is Keras' default.", lower_bound=0.0, upper_bound=0.999999
)
flags.DEFINE_float(
    "beta_2",
    0.999,
    "Adam's decay of the mean squared gradient. 0.999 is Keras' default; runs of an epoch gain from 0.95.",
    lower_bound=0.0,
    upper_bound=0.999999,
)
flags.DEFINE_integer(
    "seed",
    0,
    "Seed of the initial weights, the order of the data and the draws within the step.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)
flags.DEFINE_integer(
    "steps_per_loop",
    100,
    "Steps in one call into the graph; no part in the result. 100 take about half a second, which is how "
    "long Ctrl-C waits.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "eval_batch_size", 500, "Images at a time in evaluation. 100 to 2,500 take the same within 15 %.", lower_bound=1
)
flags.DEFINE_integer("checkpoint_every", None, "Steps between checkpoints. Default: one each epoch.", lower_bound=1)
flags.DEFINE_integer("keep_checkpoints", 3, "Newest checkpoints to keep. 3 leave two to fall back on.", lower_bound=1)
flags.DEFINE_bool("resume", True, "Go on from the newest checkpoint in --workdir; if false, refuse when there is one.")
flags.DEFINE_enum(
    "precision", "float32", ["float32", "bfloat16"], "Type of the layers' arithmetic; weights and logits stay float32."
)
flags.DEFINE_integer(
    "intra_op_threads",
    0,
    "Threads that share one operation; the last bits of a result depend on it. Default 0: one for each core, or as "
    "TF_NUM_INTRAOP_THREADS says.",
    lower_bound=0,
)
flags.DEFINE_bool("jit_compile", False, "Compile the step with XLA. Off: it is slower on CPU.")
flags.DEFINE_integer(
    "early_stopping_patience",
    0,
    "Epochs without a better validation loss after which to end. Default 0: never.",
    lower_bound=0,
)
flags.DEFINE_string(
    "profile",
    None,
    "START:STOP: writes a TensorFlow profile of these steps, counted from 1, both included, for TensorBoard's Profile "
    "tab (the extra `profile` of setup.cfg). A hundred steps show all there is and make 2 MB.",
)
flags.DEFINE_bool("dry_run", False, "A few steps of everything: train, evaluate, save, plot.")

_OWN = frozenset(FLAGS)  # whatever is defined later belongs to a research module


def make_learning_rate(schedule, rate, total_steps, warmup=None):
    """Returns the rate for a Keras optimizer: a float, or a `CosineDecay` with linear warm-up.

    `one_cycle` is Smith's policy (arXiv:1708.07120) as it became common: a rise from a 25th of the
    peak during 30 % of the steps, then a cosine to 0.
    """
    if warmup is None:
        warmup = int(0.3 * total_steps) if schedule == "one_cycle" else 0
    cosine_decay = keras.optimizers.schedules.CosineDecay
    if schedule == "constant":
        # A decay to 100 % of the peak is a warm-up alone.
        return cosine_decay(rate / 25, warmup, 1.0, warmup_target=rate, warmup_steps=warmup) if warmup else rate
    if warmup >= total_steps:
        raise Error(f"--warmup={warmup} leaves none of the {total_steps:,} steps to decay in: take fewer.")
    if not warmup:
        return cosine_decay(rate, total_steps)
    return cosine_decay(rate / 25, total_steps - warmup, warmup_target=rate, warmup_steps=warmup)


def _parse_profile(text, total_steps):
    """Parses `START:STOP`. Returns: both steps, or None for None. Raises: `mnist.Error`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= last <= total_steps:
        raise Error(
            f"--profile={text}: expected START:STOP, two of the {total_steps:,} steps of the run, as in "
            f"--profile={min(101, total_steps)}:{min(200, total_steps)}."
        )
    return first, last


def _project_flags():
    """All flags but those that absl and TensorFlow define for themselves."""
    groups = FLAGS.flags_by_module_dict().items()
    return [flag for module, group in groups if not module.startswith(("absl.", "tensorflow.")) for flag in group]


def _settings():
    """A research module's own flags, which may change the numbers."""
    return {flag.name: flag.value for flag in _project_flags() if flag.name not in _OWN}


def _command():
    """How this program was started: python -m MODULE, or python FILE."""
    spec = sys.modules["__main__"].__spec__
    return f"python -m {spec.name}" if spec else f"python {shlex.quote(sys.argv[0])}"


def _flags_text(dataset):
    """All flags with their values, but for --workdir: given back as a --flagfile they repeat the run."""
    values = FLAGS.flag_values_dict()
    values["dataset"] = dataset.name if dataset.name in data.NAMES else "auto"
    values["data_dir"] = dataset.data_dir
    values["intra_op_threads"] = num_threads()
    lines = [f"# {_command()} --flagfile=<this file> --workdir=<another folder>"]
    for flag in _project_flags():
        value = values[flag.name]
        if isinstance(value, bool):
            lines.append(f"--{'' if value else 'no'}{flag.name}")
        elif value is not None and flag.name != "workdir":
            lines.append(f"--{flag.name}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return "\n".join(lines) + "\n"


def launch(make_step=TrainStep):
    """Runs a training command: all flags of `mnist.train`, for a step of one's own.

    Args:
      make_step: called once with a built `CNN`, a Keras optimizer and `seed=`; returns a `TrainStep`.
        It may leave the model or the optimizer and bring its own.
    """
    run(lambda: _main(make_step))


def _main(make_step):
    workdir = FLAGS.workdir or os.path.join("runs", time.strftime("%Y%m%d-%H%M%S"))
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.holdout)
    num_examples = len(dataset.train.labels)
    if FLAGS.batch_size > num_examples:
        raise Error(f"--batch_size={FLAGS.batch_size} is above the {num_examples:,} training images: take fewer.")
    total_steps = FLAGS.epochs * data.steps_per_epoch(num_examples, FLAGS.batch_size)
    total_steps = min(total_steps, FLAGS.max_steps or total_steps)
    # A dry run follows the schedule of the whole run, and leaves it early.
    epochs, max_steps = (1, 10) if FLAGS.dry_run else (FLAGS.epochs, FLAGS.max_steps)
    profile = _parse_profile(FLAGS.profile, min(total_steps, 10) if FLAGS.dry_run else total_steps)
    if FLAGS.intra_op_threads not in (0, num_threads()):
        tf.config.threading.set_intra_op_parallelism_threads(FLAGS.intra_op_threads)
    keras.utils.set_random_seed(FLAGS.seed)
    model = CNN(dtype="mixed_bfloat16" if FLAGS.precision == "bfloat16" else "float32")
    rate = make_learning_rate(FLAGS.schedule, FLAGS.learning_rate, total_steps, FLAGS.warmup)
    optimizer = keras.optimizers.Adam(rate, beta_1=FLAGS.beta_1, beta_2=FLAGS.beta_2)
    step = make_step(model, optimizer, seed=FLAGS.seed)
    print(summarize_model(step.model))
    print(f"{dataset.name}: {num_examples:,} training images, {len(dataset.test.labels):,} test images")
    print(f"workdir: {workdir}", flush=True)
    with Interrupt() as interrupt:
        try:
            results = train_and_evaluate(
                step,
                dataset,
                workdir,
                epochs=epochs,
                max_steps=max_steps,
                batch_size=FLAGS.batch_size,
                steps_per_loop=FLAGS.steps_per_loop,
                eval_batch_size=FLAGS.eval_batch_size,
                checkpoint_every=FLAGS.checkpoint_every,
                keep_checkpoints=FLAGS.keep_checkpoints,
                resume=FLAGS.resume,
                early_stopping_patience=FLAGS.early_stopping_patience,
                jit_compile=FLAGS.jit_compile,
                profile=profile,
                settings=_settings(),
                flags_text=_flags_text(dataset),
                interrupt=interrupt,
            )
        except Interrupted as stop:
            others = [argument for argument in sys.argv[1:] if not argument.startswith("--workdir=")]
            again = [] if FLAGS.resume else ["--resume"]
            arguments = shlex.join([*others, *again, f"--workdir={workdir}"])
            # After scripts/train.sh the caller's `python` is another one.
            python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
            print(f"{stop}. To go on: {python} {_command().removeprefix('python ')} {arguments}", flush=True)
            return 128 + (interrupt.signum or signal.SIGPIPE)
    if FLAGS.dry_run:
        from mnist import plots  # matplotlib takes a second to import: only where it draws

        predictions = make_predict_logits(step.eval_model)(dataset.test.images).numpy().argmax(axis=1)
        history = [{"step": results["steps"], **results}]
        for path in plots.plot_run(history, dataset.test, predictions, os.path.join(workdir, "plots")):
            print(f"wrote {path}")
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    launch()
