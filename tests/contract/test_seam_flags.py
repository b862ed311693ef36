"""Settings, flags and flag files of a person are respected, or refused by name."""

import json
import os
import pathlib
import subprocess
import sys

from mnist import Error, checkpoint, sweep
from mnist.model import count_on
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from conftest import SMALL, run_here

HEAD = f"""
import enum, pathlib, keras
from mnist import train
from mnist.settings import Setting
from mnist.step import TrainStep
{SMALL}
class Mode(enum.Enum):
    FAST, SLOW = 1, 2

def read(step):
    return step.strength

class Mine(TrainStep):
    strength = Setting(0.1, "Strength.", low=0)
    mode = Setting(Mode.FAST, "Mode.")
    place = Setting(pathlib.Path("here"), "Place.")

    def extra_metrics(self, images, labels, logits):
        assert isinstance(self.mode, Mode) and isinstance(self.place, pathlib.Path)
        return {{"f1": read(self)}}

def make_model(drop_path=Setting(0.1, "Rate of dropout.", low=0, below=1)):
    inner = [*small().layers[:-1], keras.layers.Dropout(drop_path), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input([28, 28, 1]), *inner])
"""
# A step whose own metrics need the flags, the optimizer, the averages and the data of its run.
MEASURING = """
from absl import flags
from mnist.research.ema import EMA
flags.DEFINE_float("shift", 0.0, "A flag of this file.")
flags.DEFINE_multi_string("word", [], "A flag of this file that may be repeated.")

class Measuring(EMA, Mine):
    def extra_metrics(self, images, labels, logits):
        data, slots = self.view.dataset, sum(abs(v.numpy()).sum() for v in self.optimizer.variables)
        counts = len(data.train.labels) + 1e4 * len(data.validation.labels) + 1e8 * (self.view.part == "test")
        own = {"slots": slots, "images": counts, "optimizer": len(type(self.optimizer).__name__)}
        own["flags"] = flags.FLAGS.shift + len(flags.FLAGS.word)
        return super().extra_metrics(images, labels, logits) | own

if __name__ == "__main__":
    train.launch(Measuring, model=make_model)
"""
QUICK = ("--dataset=digits", "--max_steps=2", "--norms_every=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a script of a step and a model with settings, and a run of it, `run`."""
    folder = tmp_path_factory.mktemp("flags")
    (folder / "mine.py").write_text(HEAD + MEASURING)
    own = ("--drop_path=0.5", "--mode=SLOW", "--shift=0.5", "--word=a", "--word=b")
    done = run_here("mine.py", *QUICK, *own, "--optimizer=rmsprop", "--holdout=100", "--workdir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def refused(done):
    """Returns the message of a command that refuses in one or two lines."""
    assert done.returncode not in (0, None), done.stdout
    assert done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.splitlines()) <= 2, done.stderr
    return done.stderr


def test_a_setting_of_the_model_is_a_flag_whose_value_arrives(folder):
    lines = (folder / "run/flags.txt").read_text().splitlines()
    assert {"--drop_path=0.5", "--mode=SLOW", "--place=here"} <= set(lines)
    metadata = checkpoint.load_newest(str(folder / "run/checkpoints"))[1]
    assert metadata["model"]["config"]["layers"][3]["config"]["rate"] == 0.5
    assert metadata["fingerprint"]["flags"]["drop_path"] == "0.5"
    assert metadata["fingerprint"]["mode"] == metadata["measures"]["settings"]["mode"] == "SLOW"
    done = run_here("mine.py", "--workdir=run", "--drop_path=0.2", cwd=folder)
    assert "--drop_path was 0.5, is 0.2" in refused(done)
    assert (
        "\nmake_model:\n  --drop_path=0.1\n      Rate of dropout." in run_here("mine.py", "--help", cwd=folder).stdout
    )
    done = run_here("mnist.evaluate", "--workdir=run", "--json", cwd=folder)
    own, results = json.loads(done.stdout)["own_metrics"], json.loads((folder / "run/results.json").read_text())
    assert own == {name: results[f"test_{name}"] for name in ("f1", "slots", "images", "optimizer", "flags")}
    assert (own["f1"], own["flags"]) == (0.1, 2.5)


LAUNCH = "\ntrain.launch({})\n"
FIXED_RATE = LAUNCH.format("model=small, optimizer=lambda rate: keras.optimizers.SGD(0.2)")
OWN_RATE = LAUNCH.format("model=small, optimizer=lambda r: keras.optimizers.SGD(2 * r)")
OF_CNN = """
from mnist.model import CNN
class Thin(CNN):
    def __init__(self, *, rate=Setting(0.1, "Rate."), **kwargs):
        self.dropout = keras.layers.Dropout(rate)
        super().__init__(**kwargs)
        self.more = keras.layers.Dense(64)
    def call(self, images, training=False):
        return self.logits(self.more(self.dropout(self.features(images), training=training)))
class Thinner(Thin):
    def build(self, input_shape=None):
        assert self.dropout.rate == 0.3
        super().build(input_shape)
train.launch(model=Thinner)
"""
NO_EFFECT = "\nclass M(keras.Model):\n    rate = Setting(1, 'R.')\n"
HIDING = "\nclass Own(TrainStep):\n    workdir = Setting('', 'x')\n"
UNREAD = "\nclass Deaf(TrainStep):\n    drop_path = Setting(0.1, 'Rate.')\n"
LATE = """
class Late(TrainStep):
    sharpness = Setting(0.1, "Sharpness.")
    unit = Setting(1, "Unit.")
    def epoch_order(self, examples, epoch):
        if epoch > 99:
            print([getattr(self, name) for name in ["unit"]])
            (lambda: self.sharpness)()
        return super().epoch_order(examples, epoch)
class Late(Late):
    def epoch_order(self, examples, epoch):
        return super().epoch_order(examples, epoch)
"""


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (OF_CNN, ["--rate=0.3"], None),
        (UNREAD + LAUNCH.format("Deaf, model=small"), [], "nobody reads the setting 'drop_path' of Deaf"),
        (LATE + LAUNCH.format("Late, model=small"), [], None),
        (FIXED_RATE, [], None),
        (FIXED_RATE, ["--flagfile=sweep.flags"], "--learning_rate has no effect, because the function of opt"),
        (OWN_RATE, ["--learning_rate=0.1"], None),
        (NO_EFFECT + LAUNCH.format("model=M"), [], "M.rate has no effect"),
        (HIDING + LAUNCH.format("Own"), [], "Own.workdir has the name"),
    ],
)
def test_a_declaration_takes_effect_or_is_refused(tmp_path, script, arguments, message):
    (tmp_path / "idea.py").write_text(HEAD + script)
    (tmp_path / "sweep.flags").write_text("--learning_rate=0.5\n")
    done = run_here("idea.py", *QUICK, *arguments, "--workdir=run", cwd=tmp_path)
    if message:
        assert message in refused(done)
        assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("*/ckpt*"))
        return
    assert done.returncode == 0, done.stderr
    ignored = "SGD(0.2)" in script
    assert ("ignores the learning rate" in done.stdout) == ignored
    assert ("--learning_rate" in (tmp_path / "run/flags.txt").read_text()) != ignored
    assert run_here("idea.py", "--workdir=run", "--max_steps=3", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("own", lambda: Setting("3", "x", low=1), "has bounds, which only numbers have"),
        ("own", lambda: Setting(None, "x"), "shows no type: give kind="),
        ("own", lambda: Setting({"a": 1}, "x"), "is of the kind dict"),
        ("own", lambda: Setting(3, "x", high=2), "own is 3, expected an integer of at most 2"),
        ("own", lambda: Setting("c", "x", kind=("a", "b")), "own is 'c', expected one of a, b"),
        ("own", lambda: Setting(1.0), "has no help"),
        *((name, lambda: Setting(1, "x"), "would hide") for name in ("steps", "test_accuracy")),
        *((name, lambda: Setting(1, "x"), "would hide") for name in ("compute_loss", "random_seed")),
    ],
)
def test_a_setting_that_cannot_work_is_refused_where_its_class_is_defined(name, setting, message):
    with pytest.raises(Error, match=message) as caught:
        type("Own", (TrainStep,), {name: setting()})
    assert str(caught.value).startswith(f"Own.{name} ")


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--seed=1", "--flagfile=F"], 1),
        (["--flagfile=F", "--seed=1"], 1),
        (["--flagfile", "outer"], 5),
        (["--flagfile=outer", "--seed", "6"], 6),
    ],
)
def test_a_typed_flag_wins_over_a_file_and_a_file_over_those_that_it_names(tmp_path, arguments, value):
    (tmp_path / "F").write_text("# first\n--seed=2   # the seed\n--keep_best=\n--workdir=x#y\n  # last\n")
    (tmp_path / "outer").write_text("--seed=5\n--flagfile=F\n")
    script = "from mnist.cli import run\nfrom mnist.settings import Setting\nclass Own:\n"
    script += "    seed = Setting(0, 'x')\n    keep_best = Setting(None, 'x', kind=str)\n"
    script += "    workdir = Setting('', 'x')\nrun(lambda o: print(o.seed, o.workdir), Own)"
    (tmp_path / "show.py").write_text(script)
    done = run_here("show.py", *arguments, cwd=tmp_path)
    assert done.stdout.split() == [str(value), *["x#y"] * any("flagfile" in argument for argument in arguments)]


def test_a_flag_file_that_reads_itself_is_refused(tmp_path):
    (tmp_path / "loop.flags").write_text("--flagfile=loop.flags\n")
    done = run_here("mnist.train", "--flagfile=loop.flags", cwd=tmp_path)
    assert "--flagfile=loop.flags reads itself." in refused(done)


def test_the_same_flags_count_in_a_sweep(tmp_path):
    (tmp_path / "F").write_text("--max_steps=9\n--seed=4\n--dataset=digits\n")
    arguments = ["--max_steps=3", f"--flagfile={tmp_path / 'F'}"]
    (run,) = sweep.make_runs(str(tmp_path / "W"), {}, 1, ["-m", "mnist.train"], arguments)
    sweep._write_flags(run)
    done = run_here("mnist.train", f"--flagfile={run.workdir}/sweep.flags", f"--workdir={run.workdir}")
    assert done.returncode == 0, done.stderr
    results = json.loads(pathlib.Path(run.workdir, "results.json").read_text())
    assert (results["steps"], results["seed"]) == (3, 0)
    assert "W is the folder of a sweep" in refused(run_here("mnist.train", f"--workdir={tmp_path / 'W'}"))
    with pytest.raises(Error, match="is the folder of a run"):
        sweep.sweep(run.workdir, arguments=["--dataset=digits"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda path: path.unlink(), "flags.txt is missing: give all flags of the run"),
        (lambda path: path.write_text("".join(path.read_text().splitlines(True)[:3])), "flags.txt is damaged: "),
    ],
)
def test_a_run_without_its_flags_is_not_resumed_with_defaults(folder, edit, message):
    path = folder / "run/flags.txt"
    text = path.read_text()
    try:
        edit(path)
        assert message in refused(run_here("mine.py", "--workdir=run", cwd=folder))
        whole = [line for line in text.splitlines() if line.startswith("--")]
        (folder / "all.flags").write_text("\n".join(whole))
        done = run_here("mine.py", "--workdir=run", "--flagfile=all.flags", cwd=folder)  # as the message asks
        assert done.returncode == 0, done.stderr
    finally:
        path.write_text(text)


def test_a_dry_run_in_the_folder_of_a_run_is_refused(folder):
    done = run_here("mine.py", "--workdir=run", "--dry_run", cwd=folder)
    assert "--dry_run: run holds a run already: name another folder" in refused(done)


def test_an_unknown_command_is_suggested():
    assert "did you mean python -m mnist.research.label_smoothing?" in refused(run_here("mnist", "smooth"))


@pytest.mark.parametrize("code", ["import mnist, slow", "import mnist, slow.deep", "import mnist.metrics.seeds"])
def test_ctrl_c_during_the_imports_prints_one_line(tmp_path, code):
    (tmp_path / "slow").mkdir()
    for path in ("slow/__init__.py", "slow/deep.py")[code.endswith("deep") :]:
        (tmp_path / path).write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    # An extension of NumPy or SciPy makes an ImportError of it.
    (tmp_path / "scipy.py").write_text("try:\n  import slow\nexcept KeyboardInterrupt:\n  raise ImportError('numpy')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_in_a_script_of_a_user_keeps_its_traceback():
    code = "import mnist, signal\nsignal.raise_signal(signal.SIGINT)"
    assert "Traceback" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_a_worker_that_is_not_the_chief_takes_the_flags_of_the_chief(folder):
    config = {"cluster": {"worker": ["localhost:1", "localhost:2"]}, "task": {"type": "worker", "index": 1}}
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other/flags.txt").write_text("damaged")  # the worker has not to read it
    done = run_here(
        "mine.py", "--workdir=other", "--devices=8", "--slices=4", cwd=folder, env={"TF_CONFIG": json.dumps(config)}
    )
    assert "damaged" not in done.stderr


def state_of(workdir):
    return checkpoint.load_newest(os.path.join(workdir, "checkpoints"))[0]


FROZEN = (
    HEAD
    + """
def make_frozen():
    model = small()
    model.layers[0].trainable = False
    return model
train.launch(model=MODEL, optimizer=OPTIMIZER)
"""
)


def test_a_run_continues_with_the_state_of_the_optimizer(tmp_path):
    own = "lambda rate: keras.optimizers.Adam(rate, use_ema=True)"
    (tmp_path / "whole.py").write_text(FROZEN.replace("MODEL", "small").replace("OPTIMIZER", own))
    (tmp_path / "frozen.py").write_text(FROZEN.replace("MODEL", "make_frozen").replace("OPTIMIZER", own))
    (tmp_path / "other.py").write_text(FROZEN.replace("MODEL", "small").replace("OPTIMIZER", "keras.optimizers.SGD"))
    common = ("--dataset=digits", "--epochs=1", "--norms_every=0")
    go = ("--init_from=first", "--init_optimizer")

    def run(script, workdir, *flags):
        return run_here(script, *common, f"--workdir={workdir}", *flags, cwd=tmp_path)

    for done in (
        run("whole.py", "first"),
        run("whole.py", "second", *go, "--learning_rate=0.01", "--max_steps=3"),
        run("frozen.py", "third", *go, "--max_steps=2"),
        run("frozen.py", "third", "--max_steps=3"),
        run("frozen.py", "straight_third", *go, "--max_steps=3"),
    ):
        assert done.returncode == 0, done.stderr
    first, second, third = (state_of(tmp_path / name) for name in ("first", "second", "third"))
    before = [name for name in second if name.startswith("optimizer/") and second[name].shape == ()]
    assert sorted(second[name].tolist() for name in before)[1:] == [3, 24]  # the rate, new updates, those before
    assert all((second[f"model/{i}"] != first[f"model/{i}"]).any() for i in range(4))
    assert (third["model/0"] == first["model/0"]).all()
    straight = state_of(tmp_path / "straight_third")
    assert all(third[name].tobytes() == straight[name].tobytes() for name in third if name != "metadata")
    assert "was trained by Adam, this run has SGD" in refused(run("other.py", "fourth", *go))


def test_a_continued_adam_makes_the_updates_of_one_that_never_stopped():
    variables = [keras.Variable([1.0, 2.0]) for _ in range(2)]
    whole, parts = keras.optimizers.Adam(0.1), [keras.optimizers.Adam(0.1) for _ in range(2)]
    count_on(parts[1])
    whole.build(variables[:1])
    for part in parts:
        part.build(variables[1:])
    for number in range(6):
        if number == 3:
            for i in (2, 3):
                parts[1].variables[i].assign(parts[0].variables[i])
            parts[1].variables[-1].assign(parts[0].variables[0])
        gradient = np.float32([number - 2, 0.5])
        whole.apply_gradients([(gradient, variables[0])])
        parts[number // 3].apply_gradients([(gradient, variables[1])])
    assert (variables[0].numpy() == variables[1].numpy()).all()
    assert int(parts[1].variables[0].numpy()) == 3
