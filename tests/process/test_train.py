"""The training command in the process of the tests: flags, refusals, reruns. test_trust starts processes."""

import enum
import json
import os
import sys
import types

from mnist import checkpoint, train
from mnist.cli import flagfile
from mnist.cli.setting_flags import defined_flags
from mnist.model import Optimizer, make_learning_rate, make_optimizer
from mnist.run import OF_THE_HOUR, Plan
from mnist.settings import settings_of
from mnist.step import TrainStep

import keras
import pytest
from absl import flags
from conftest import make_linear

BAD = [
    (["--epochs=many"], "--epochs=many: expected an integer of at least 1."),
    (["--schedule=linear"], "expected one of constant, cosine, one_cycle"),
    (["--nonsense=1"], "there is no flag --nonsense."),
    (["--lr=1"], "there is no flag --lr: did you mean --learning_rate?"),
    (["--dataset=digits", "stray"], "unexpected argument: 'stray'"),
    (["--dataset=digits", "--schedule=cosine", "--warmup=9999"], "warmup"),
    (["--dataset=digits", "--profile=5"], "--profile=5: expected START:STOP"),
    (["--workdir=a", "--workdir=b"], "--workdir=b: the flag is given twice, also as a."),
    (["--workdir="], "--workdir=: expected a path."),
    (["--flagfile=gone.flags"], "cannot read --flagfile=gone.flags: No such file or directory."),
    (["--init_optimizer", "--dataset=digits"], "--init_optimizer needs the run"),
    (["--dataset=digits", "--workdir=/dev/null"], "cannot write to --workdir=/dev/null"),
    (["--dataset=digits", "--optimizer=sgd", "--beta_1=0.8"], "--optimizer=sgd has no beta_1: leave out --beta_1."),
    (["--dataset=digits", "--workdir=gs://bucket/run"], "gs://bucket/run is a URL: "),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_a_message_and_leaves_nothing(command, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, out, _ = command(*arguments)
    assert code.startswith("error: ")
    assert named in code
    assert len(code.splitlines()) <= 2
    assert out == ""
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small(command):
    """Runs `python -m mnist.train` with a network that takes little time."""
    return lambda *arguments: command(*arguments, model=make_linear)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Returns the folder for a run of 7 steps."""
    return tmp_path_factory.mktemp("stopped") / "run"


FLAGS = ["--noresume", "--dataset=digits", "--learning_rate=0.002", "--holdout=100"]
FLAGS += ["--optimizer=adamw", "--max_steps=7"]


def test_the_workdir_alone_resumes_with_the_flags_of_the_run(small, stopped, tmp_path):
    code, out, _ = small(*FLAGS, f"--workdir={stopped}")
    assert code == 0
    assert out.endswith(f" --logdir {stopped}\n")
    assert f"s of training: {stopped}/results.json" in out.splitlines()[-2]
    assert small(f"--flagfile={stopped}/flags.txt", f"--workdir={tmp_path}")[0] == 0  # repeats the run
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (stopped, tmp_path))
    assert {k for k in one if one[k] != two[k]} <= OF_THE_HOUR
    assert (stopped / "flags.txt").read_text() == (tmp_path / "flags.txt").read_text()
    code, out, _ = small(f"--workdir={stopped}")
    assert code == 0
    assert out.startswith(f"{stopped} is finished, at step 7: --epochs or --max_steps may be raised.\ntest loss ")
    code, out, _ = small(f"--workdir={stopped}", "--max_steps=9", "--steps_per_loop=1")
    assert code == 0
    assert f"workdir: {stopped}, resuming from step 7" in out
    assert checkpoint.load_newest(f"{stopped}/checkpoints")[1]["step"] == 9
    code, _, _ = small(f"--workdir={stopped}", "--epochs=1")  # replaces the old --max_steps
    assert code == 0
    assert json.loads((stopped / "results.json").read_text())["steps"] == 22


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--holdout=200"], "--holdout was 100, is 200"),
        (["--precision=bfloat16", "--seed=3"], "--seed was 0, is 3; --precision was float32, is bfloat16"),
        (["--weight_decay=0.1"], "--weight_decay was not set, is 0.1"),
        (["--optimizer=sgd", "--flagfile=/dev/null"], "--holdout was 100, is 0; --learning_rate was 0.002, is 0.001"),
        (["--optimizer=sgd", "--max_steps=9"], "--optimizer was adamw, is sgd"),
    ],
)
def test_other_flags_are_refused_as_typed_before_anything_is_printed(small, stopped, arguments, named):
    if not stopped.exists():
        small(*FLAGS, f"--workdir={stopped}")
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    code, out, _ = small(f"--workdir={stopped}", *arguments)
    assert out == ""
    assert code.startswith(f"error: {stopped} holds a run with other flags: {named}")
    assert len(code.splitlines()) == 2
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_schedule_is_as_long_as_the_run(small, tmp_path):
    arguments = ["--dataset=digits", "--schedule=cosine", "--max_steps=3", f"--workdir={tmp_path}"]
    assert small(*arguments)[0] == 0
    code, _, _ = small(f"--workdir={tmp_path}", "--max_steps=4")
    assert "--max_steps was 3, is 4 (the schedule depends on it)" in code


def test_a_run_of_another_command_is_named(command, tmp_path):
    (tmp_path / "flags.txt").write_text("# python -m mnist.research.sam --flagfile=<this file> --w\n--rho=0.1\n")
    code, _, _ = command(f"--workdir={tmp_path}")
    assert code.endswith("holds a run of another command, with --rho: resume it with python -m mnist.research.sam.")


def test_auto_is_recorded_as_what_it_resolved_to(small, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mnist.data.download.STORE", "http://127.0.0.1:9/")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    code, _, _ = small("--dry_run", f"--workdir={tmp_path / 'run'}")
    assert code == 0
    assert "DIGITS OF SCIKIT-LEARN" in caplog.text
    assert "--dataset=digits" in (tmp_path / "run/flags.txt").read_text().splitlines()
    assert json.loads((tmp_path / "run/results.json").read_text())["dataset"] == "digits"


def test_dry_run_does_a_little_of_everything(command, tmp_path):
    code, out, _ = command("--dry_run", "--dataset=digits", f"--workdir={tmp_path}", "--precision=bfloat16")
    assert code == 0
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    plots = {f"plots/{name}.png" for name in ("curves", "mistakes", "confusion_matrix", "accuracies", "filters")}
    assert {"results.json", "flags.txt", "model.txt", "checkpoints/ckpt-10.index"} | plots <= names
    summary = (tmp_path / "model.txt").read_text()
    assert "(None, 24, 24, 32)" in summary
    assert "?" not in summary
    assert "\nCNN: 93,322 parameters\n" in out
    assert len(out.splitlines()) < 13
    assert "\r" not in out  # plain lines where no terminal is
    assert "\x1b" not in out


def test_an_own_model_is_made_under_the_precision_and_an_own_optimizer_gets_the_schedule(command, tmp_path):
    made = []

    def optimizer(rate):
        made.append(rate)
        return keras.optimizers.SGD(rate, momentum=0.9)

    class Seen(TrainStep):
        def __init__(self, model, optimizer, **kwargs):
            super().__init__(model, optimizer, **kwargs)
            made.append(model.layers[0].compute_dtype)

    common = ["--dataset=digits", "--max_steps=2", "--schedule=cosine", "--learning_rate=0.5"]
    own = {"step": Seen, "model": lambda: make_linear(dtype="float32"), "optimizer": optimizer}
    code, out, _ = command(*common, "--precision=bfloat16", f"--workdir={tmp_path}", **own)
    assert code == 0
    assert "Sequential: 7,850 parameters" in out
    rate, dtype = made
    assert (type(rate).__name__, float(rate(0)), dtype) == ("CosineDecay", 0.5, "bfloat16")
    assert keras.config.dtype_policy().name == "float32"  # as before
    state = checkpoint.load_newest(f"{tmp_path}/checkpoints")[1]
    described = state["fingerprint"]["optimizer"]
    assert (described["class"], described["config"]["momentum"]) == ("SGD", 0.9)
    assert state["fingerprint"]["precision"] == "mixed_bfloat16"
    code, _, _ = command("--beta_1=0.9", f"--workdir={tmp_path}/new", optimizer=optimizer)
    assert "there is no flag --beta_1" in code  # it would have no part


def test_what_is_no_step_is_refused():
    with pytest.raises(TypeError, match="takes a subclass of TrainStep"):
        train.launch(lambda model, optimizer: None)


def test_a_flag_of_the_script_is_in_flags_txt_and_may_not_change(small, tmp_path):
    flags.DEFINE_integer("own", 3, "A number.")
    flags.DEFINE_alias("other", "own")
    try:
        code, _, _ = small("--dataset=digits", "--max_steps=1", f"--workdir={tmp_path}", "--own=4")
        assert code == 0
        lines = (tmp_path / "flags.txt").read_text().splitlines()
        assert [line for line in lines if line.startswith(("--own", "--other"))] == ["--own=4"]
        for flag in ("--own=5", "--other=5"):
            assert "--own was 4, is 5" in small(f"--workdir={tmp_path}", flag)[0]
        assert small(f"--workdir={tmp_path}")[0] == 0
        code, out, _ = small("--helpshort")
        assert code == 0
        assert "--own=3" in out
    finally:
        for name in ("other", "own"):
            delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("adamw", {"clipnorm": 1.0}, {"weight_decay": 0.004, "clipnorm": 1.0}),
        ("adam", {"beta_1": 0.8}, {"beta_1": 0.8, "beta_2": 0.999, "weight_decay": None}),
        ("sgd", {"weight_decay": 0.1}, {"momentum": 0.0, "weight_decay": 0.1}),
    ],
)
def test_optimizers_are_keras_own_with_their_defaults(name, options, expected):
    unset = dict.fromkeys(settings_of(Optimizer))
    optimizer = make_optimizer(types.SimpleNamespace(**(unset | {"optimizer": name} | options)), 0.1)
    config = optimizer.get_config()
    assert type(optimizer).__name__.lower() == name
    assert {key: config[key] for key in expected} == expected
    assert config["learning_rate"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", None, [1, 1, 1]),
        ("constant", 50, [1 / 25, 1, 1]),
        ("cosine", None, [1, 0.5, 0]),
        ("cosine", 50, [1 / 25, 1, 0]),
        ("one_cycle", 50, [1 / 25, 1, 0]),
    ],
)
def test_schedules_at_start_middle_and_end(schedule, warmup, expected):
    rate = make_learning_rate(schedule, 1.0, 100, warmup)
    values = [float(rate(step)) if callable(rate) else rate for step in (0, 50, 100)]
    assert values == pytest.approx(expected, abs=1e-6)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


OWN_FLAGS = [
    (lambda: flags.DEFINE_multi_string("own", ["a"], "-"), ["--own=x", "--own=y,z"]),
    (lambda: flags.DEFINE_multi_float("own", None, "-"), ["--own=0.5", "--own=-1e-9"]),
    (lambda: flags.DEFINE_enum_class("own", Colour.RED, Colour, "-"), ["--own=green"]),
    (lambda: flags.DEFINE_list("own", ["a", "b"], "-"), ['--own=a,"b,c",d e']),
    (lambda: flags.DEFINE_string("own", None, "-"), ["--own= a# 'q' \\ ü"]),
    (lambda: flags.DEFINE_bool("own", None, "-"), ["--noown"]),
    (lambda: flags.DEFINE_flag(flags.Flag(flags.IntegerParser(), None, "own", 3, "-")), ["--own=4"]),
]


@pytest.mark.parametrize(("define", "arguments"), OWN_FLAGS)
def test_a_flag_of_any_type_is_read_back_as_it_was(tmp_path, monkeypatch, define, arguments):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "ckpt-1.index").touch()
    define()
    try:
        with defined_flags(train.Launch, Plan):
            flags.FLAGS(["train.py", *arguments])
            value = flags.FLAGS.own
            (tmp_path / "flags.txt").write_text(flagfile.flags_text("digits", None))
            for read in (
                lambda: flags.FLAGS(["train.py", f"--flagfile={tmp_path / 'flags.txt'}"]),
                lambda: flagfile.take_flags(flagfile.lines_of_run(str(tmp_path))),
            ):
                flags.FLAGS["own"].unparse()
                read()
                assert flags.FLAGS.own == value
                flagfile.refuse_other_flags(str(tmp_path))
    finally:
        delattr(flags.FLAGS, "own")


@pytest.mark.parametrize("text", ["ends with a space ", "two\nlines"])
def test_a_text_that_no_line_can_hold_is_refused(command, tmp_path, text):
    flags.DEFINE_string("own", "", "-")
    try:
        code, _, _ = command("--dataset=digits", f"--own={text}", f"--workdir={tmp_path / 'run'}")
    finally:
        delattr(flags.FLAGS, "own")
    assert code.startswith(f"error: --own={text!r} has a line break, a space at its end, or a comment")
    assert not (tmp_path / "run").exists()
