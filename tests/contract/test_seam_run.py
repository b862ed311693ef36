"""The seams between a run and its user: hooks that raise, Ctrl-C, a changed rate, own metrics in another command."""

import json
import os
import signal

from mnist import Error, checkpoint, compare, finished
from mnist.checkpoint import bundle
from mnist.data import Dataset, Examples
from mnist.loop import train_and_evaluate
from mnist.run import OF_THE_HOUR
from mnist.settings import Setting
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import bits_of, make_linear, random_examples

IN_HOOKS = {}


class Hooked(TrainStep):
    """A step whose hooks call `IN_HOOKS[name]` at step 24, the end of the first epoch of the digits."""

    def _test(self, name):
        if int(self.iterations) == 24 and name in IN_HOOKS:
            IN_HOOKS[name]()

    def extra_metrics(self, images, labels, logits):
        self._test("extra_metrics")
        return {}

    def after_evaluation(self, entry):
        self._test("after_evaluation")
        self.optimizer.learning_rate.assign(0.1 / (1 + entry["validation_loss"]))

    def epoch_order(self, examples, epoch):
        self._test("epoch_order")
        return super().epoch_order(examples, epoch)


def make_step(cls=TrainStep, rate=0.1):
    keras.utils.set_random_seed(0)
    return cls(make_linear(), keras.optimizers.SGD(rate))


def train(workdir, digits, step=None, **options):
    step = step or make_step()
    results = train_and_evaluate(step, digits, str(workdir), **({"epochs": 2} | options))
    return {name: value for name, value in results.items() if name not in OF_THE_HOUR}, bits_of(step)


def steps(workdir):
    return checkpoint.steps(str(workdir / "checkpoints"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, digits):
    return train(tmp_path_factory.mktemp("straight"), digits, make_step(Hooked))


@pytest.mark.parametrize("hook", ["extra_metrics", "epoch_order"])
def test_a_hook_that_raises_loses_no_epoch(digits, tmp_path, monkeypatch, straight, hook):
    monkeypatch.setitem(IN_HOOKS, hook, lambda: 1 / 0)
    for _ in range(2):  # also where the run resumes into the same mistake
        step = make_step(Hooked)
        with pytest.raises(ZeroDivisionError):
            train(tmp_path, digits, step)
        assert steps(tmp_path) == [24]
        assert step.view.part == "train"
    cls = Hooked
    if hook == "epoch_order":
        cls = type("Hooked", (Hooked,), {"epoch_order": lambda *arguments: TrainStep.epoch_order(*arguments)})
    monkeypatch.delitem(IN_HOOKS, hook)
    assert train(tmp_path, digits, make_step(cls)) == straight


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_in_a_notebook_saves_and_the_same_call_resumes(digits, tmp_path, monkeypatch, straight, times):
    def press():  # at the first evaluation
        if not (tmp_path / "pressed").exists():
            (tmp_path / "pressed").touch()
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setitem(IN_HOOKS, "extra_metrics", press)
    step = make_step(Hooked)
    with pytest.raises(KeyboardInterrupt, match=f"step 24, saved in {tmp_path}" if times == 1 else "^$"):
        train(tmp_path, digits, step)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps(tmp_path) == [24]
    assert train(tmp_path, digits, step) == straight


def test_a_checkpoint_survives_a_kill_while_it_is_replaced(tmp_path, monkeypatch):
    variables = {"a": tf.Variable(1.0)}
    bundle.save(str(tmp_path), variables, {"step": 3, "history": []}, keep=1)
    for kills_at in (1, 2):
        calls, replace = [], os.replace

        def kill(*paths, calls=calls, replace=replace, kills_at=kills_at):
            calls.append(paths)
            if len(calls) == kills_at:
                raise KeyboardInterrupt
            replace(*paths)

        monkeypatch.setattr(os, "replace", kill)
        variables["a"].assign(2.0)
        with pytest.raises(KeyboardInterrupt):
            bundle.save(str(tmp_path), variables, {"step": 3, "history": [1]}, keep=1)
        monkeypatch.undo()
        tensors, metadata = bundle.load_newest(str(tmp_path))
        assert (tensors["a"], metadata["history"]) == (1.0, [])
    bundle.save(str(tmp_path), variables, {"step": 3, "history": [1]}, keep=1)
    assert bundle.load_newest(str(tmp_path))[0]["a"] == 2.0
    assert not list(tmp_path.glob("before-*"))


def test_a_live_step_continues_with_another_rate_and_a_new_one_is_refused(digits, tmp_path):
    step = make_step()
    train(tmp_path, digits, step, epochs=1)
    step.optimizer.learning_rate = 0.05
    _, values = train(tmp_path, digits, step)
    assert float(step.optimizer.learning_rate) == np.float32(0.05)
    with pytest.raises(Error, match=r"optimizer.learning_rate was 0.05, is 0.1"):
        train(tmp_path, digits, make_step(), epochs=3)
    fresh = make_step(rate=0.05)
    assert train(tmp_path, digits, fresh)[1] == values
    once = make_step()
    train(tmp_path / "other", digits, once, epochs=1)
    assert train(tmp_path / "other", digits, once)[1] != values


class Ends(TrainStep):
    def after_evaluation(self, entry):
        assert {"validation_accuracy", "validation_loss"} <= entry.keys()
        return np.bool_(entry["step"] % 24 == 0)  # also at step 0, where it has no effect


class Still(TrainStep):
    def apply_gradients(self, gradients):
        super().apply_gradients([0 * gradient for gradient in gradients])


@pytest.mark.parametrize(
    ("cls", "options", "raised", "why"),
    [
        (Ends, {"epochs": 3}, {"epochs": 4}, r"after_evaluation of the step ended it. --epochs or --max_steps may be"),
        (Still, {"early_stopping_patience": 1}, {"early_stopping_patience": 2}, "no better v"),
    ],
)
def test_a_run_that_ends_early_is_finished_and_says_why(digits, tmp_path, capfd, cls, options, raised, why):
    options, raised = {"epochs": 9} | options, {"epochs": 9} | raised
    results, values = train(tmp_path, digits, make_step(cls), **options)
    assert results["steps"] in (24, 48)
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == results["steps"]
    capfd.readouterr()
    assert train(tmp_path, digits, make_step(cls), **options) == (results, values)
    assert f"is finished, at step {results['steps']}: {why}" in capfd.readouterr().out
    assert train(tmp_path, digits, make_step(cls), **raised)[0]["steps"] == results["steps"] + 24


class Warm(TrainStep):
    temperature = 1.0

    def extra_metrics(self, images, labels, logits):
        return {"temperature": self.temperature}


def test_metrics_by_an_attribute_that_was_set_later_are_left_out_by_name(digits, tmp_path, caplog):
    step = make_step(Warm)
    step.temperature = 5.0
    train(tmp_path, digits, step)
    assert finished.load(tmp_path).own_metrics(*digits.test, np.zeros([297, 10])) == {}
    assert "temperature was 5.0 in the run, is None in a new step" in caplog.text


def test_keep_best_refuses_an_unknown_name_before_an_epoch_is_lost(digits, tmp_path):
    with pytest.raises(Error, match=r"no evaluation has it; there are .*train_loss"):
        train(tmp_path, digits, keep_best="min:train_foo")
    assert not steps(tmp_path)


def test_results_without_checkpoints_are_not_overwritten(digits, tmp_path, capfd):
    train(tmp_path, digits, epochs=1)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(Error, match=r"has results\.json, but no checkpoint to resume"):
        train(tmp_path, digits, epochs=1)
    assert (tmp_path / "results.json").read_bytes() == before
    (tmp_path / "results.json").unlink()
    capfd.readouterr()
    train(tmp_path, digits, epochs=1)
    assert "has metrics.jsonl, but no checkpoint to resume: it begins again at step 0" in capfd.readouterr().out


def test_a_failed_first_step_does_not_refuse_the_next_start(command, tmp_path):
    methods = {"noise": Setting(1.0, "A flag of this class."), "compute_loss": lambda self, *_: self.noise.missing}
    flags = ("--dataset=digits", "--max_steps=2", f"--workdir={tmp_path}")
    with pytest.raises(AttributeError):
        command(*flags, step=type("Fails", (TrainStep,), methods))
    assert command(*flags)[0] == 0


IMAGES, LABELS = random_examples(40)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 256, LABELS, "the images: float64 from 0.0 to 0.996.* that are not grey levels"),
        (IMAGES, LABELS.astype(np.int64) - 1, "the labels: from -1 to 8, expected 0 to 255"),
        (IMAGES, LABELS[:39], "there are 40 images and 39 labels"),
    ],
)
def test_a_data_set_of_a_notebook_is_checked(digits, images, labels, message):
    with pytest.raises(Error, match=message):
        Dataset("own", None, Examples(images, labels), digits.test, digits.test)
    with pytest.raises(Error, match=message):
        digits._replace(name="own", train=digits.train._replace(images=images, labels=labels))


def test_a_data_set_of_a_notebook_is_the_same_as_from_files():
    own = Examples(IMAGES, LABELS.astype(np.int64))
    assert own.digest() == Examples(IMAGES[..., np.newaxis], LABELS).digest()


def test_compare_subtracts_nothing_of_different_images_in_runs_of_an_older_version(tmp_path):
    folders = []
    for folder, holdout, loss in zip("ab", (0, 100), (0.5, 0.75), strict=True):
        (tmp_path / folder).mkdir()
        results = {"dataset": "own", "validation_loss": loss, "test_loss": loss}  # without digests
        (tmp_path / folder / "results.json").write_text(json.dumps(results))
        (tmp_path / folder / "flags.txt").write_text(f"# python\n--holdout={holdout}\n")
        folders.append(str(tmp_path / folder))
    *rows, last = (line.split() for line in compare.compare_runs(folders).splitlines()[1:])
    assert rows == [
        ["--holdout", "0", "100"],
        ["validation_loss", "0.5", "0.75"],
        ["test_loss", "0.5", "0.75", "+0.25"],
    ]
    assert last[-2:] == ["--holdout", "differs"]
