"""The command: flags, refusals, reruns. In this process; what needs a process of its own is in test_trust."""

import json
import os
import sys

from mnist import train

import pytest
from absl import flags
from absl.testing import flagsaver


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs `python -m mnist.train` with arguments, here. Returns: exit code or message, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mnist.train", *arguments])
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            with pytest.raises(SystemExit) as exit:
                train.launch()
        out, err = capfd.readouterr()
        return exit.value.code, out, err

    yield run
    flags.FLAGS.mark_as_parsed()


BAD = [
    (["--batch_size=0"], "batch_size"),
    (["--dataset=digits", "--batch_size=1501"], "1,500 training images"),
    (["--epochs=-1"], "epochs"),
    (["--epochs=many"], "epochs"),
    (["--max_steps=0"], "max_steps"),
    (["--learning_rate=-1"], "learning_rate"),
    (["--schedule=linear"], "schedule"),
    (["--precision=float16"], "precision"),
    (["--seed=-1"], "seed"),
    (["--nonsense=1"], "nonsense"),
    (["--dataset=cifar"], "dataset"),
    (["--dataset=digits", "stray"], "unexpected argument: 'stray'"),
    (["--dataset=digits", "--holdout=1500"], "leaves none of 1,500"),
    (["--dataset=digits", "--schedule=cosine", "--warmup=9999"], "warmup"),
    (["--dataset=digits", "--profile=5"], "--profile=5: expected START:STOP"),
    (["--dataset=digits", "--profile=0:5"], "two of the 120 steps of the run, as in --profile=101:120"),
    (["--dataset=digits", "--profile=7:6"], "--profile=7:6: expected START:STOP"),
    (["--dataset=digits", "--profile=100:121"], "--profile=100:121: expected START:STOP"),
    (["--dataset=digits", "--data_dir=somewhere"], "leave out --data_dir"),
    (["--data_dir=no/such/folder"], "does not exist"),
    (["--dataset=digits", "--workdir=/dev/null"], "cannot write to --workdir=/dev/null"),
    (["--dataset=digits", "--workdir=/proc/nowhere"], "cannot write to --workdir=/proc/nowhere"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_a_message_and_leaves_nothing(command, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*arguments)
    message = code if isinstance(code, str) else err
    assert code not in (0, None)
    assert named in message
    assert "Traceback" not in message + err
    assert len(message.strip().splitlines()) <= 3  # absl adds a line that names --help
    assert os.listdir(tmp_path) == []


def test_flagfile_repeats_the_run(command, tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    options = ["--dataset=digits", "--epochs=1", "--schedule=one_cycle", "--learning_rate=0.003", "--holdout=100"]
    code, _, _ = command(*options, f"--workdir={first}")
    assert code == 0
    code, _, _ = command(f"--flagfile={first}/flags.txt", f"--workdir={again}")
    assert code == 0
    one, two = (json.loads((w / "results.json").read_text()) for w in (first, again))
    assert {k for k in one if one[k] != two[k]} <= {"train_seconds", "images_per_second"}
    assert (first / "flags.txt").read_text() == (again / "flags.txt").read_text()


def test_auto_is_recorded_as_what_it_resolved_to(command, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("mnist.data._STORE", "http://127.0.0.1:9/")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    code, _, _ = command("--dry_run", f"--workdir={tmp_path / 'run'}")
    assert code == 0
    assert "DIGITS OF SCIKIT-LEARN" in caplog.text
    assert "--dataset=digits" in (tmp_path / "run/flags.txt").read_text().splitlines()
    assert json.loads((tmp_path / "run/results.json").read_text())["dataset"] == "digits"


def test_dry_run_does_a_little_of_everything(command, tmp_path):
    code, out, _ = command("--dry_run", "--dataset=digits", f"--workdir={tmp_path}", "--precision=bfloat16")
    assert code == 0
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    plots = {f"plots/{name}.png" for name in ("curves", "predictions", "confusion_matrix")}
    assert {"results.json", "flags.txt", "checkpoints/ckpt-10.index"} | plots <= names
    assert "\r" not in out  # plain lines where no terminal is
    assert "\x1b" not in out


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
    rate = train.make_learning_rate(schedule, 1.0, 100, warmup)
    values = [float(rate(step)) if callable(rate) else rate for step in (0, 50, 100)]
    assert values == pytest.approx(expected, abs=1e-6)
