"""What a real TensorBoard server shows of a run that was stopped and resumed."""

import io
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from mnist import data
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from PIL import Image

STEPS = 48
RATE = keras.optimizers.schedules.PolynomialDecay(1e-3, STEPS, 0.0)  # another at each step


class StopOnce:
    signum = None


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run killed before its first checkpoint, after a loop, and after summaries that no checkpoint covers.

    Its first two processes had a clock that was a day ahead.
    """
    workdir = tmp_path_factory.mktemp("runs") / "run"
    digits = data.load("digits")

    def train(stop_at=None, lose_checkpoint=False):
        keras.utils.set_random_seed(0)
        step = TrainStep(CNN(), keras.optimizers.Adam(RATE), seed=0)
        interrupt = StopOnce()
        if stop_at:

            class Interrupt:
                @property
                def signum(self):
                    return 15 if int(step.optimizer.iterations) >= stop_at else None

            interrupt = Interrupt()
        try:
            train_and_evaluate(
                step,
                digits,
                str(workdir),
                epochs=2,
                steps_per_loop=5,
                interrupt=interrupt,
                flags_text="--seed=0\n",
            )
        except Interrupted:
            if lose_checkpoint:
                for path in (workdir / "checkpoints").glob(f"ckpt-{int(step.optimizer.iterations)}.*"):
                    path.unlink()

    def set_clock_ahead():
        for path in sorted(workdir.glob("*/events*")):
            head, stamp, tail = re.fullmatch(r"(.*tfevents\.)(\d+)(.*)", path.name).groups()
            path.rename(path.with_name(f"{head}{int(stamp) + 86400}{tail}"))

    train(stop_at=5)
    shutil.rmtree(workdir / "checkpoints")
    train(stop_at=10)
    set_clock_ahead()
    train(stop_at=29, lose_checkpoint=True)  # as after kill -9: event files ahead of checkpoints
    train()
    return str(workdir.parent)


@pytest.fixture(scope="module", params=["true", "false"])
def server(request, logdir, python):
    """A TensorBoard server on a free port; `get(path, **query)` returns what it answers."""
    command = [python, "-m", "tensorboard.main", "--logdir", logdir, "--port=0", f"--load_fast={request.param}"]
    log = open(os.path.join(logdir, f"tensorboard-{request.param}.log"), "w+")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        url, deadline = None, time.time() + 60
        while not url and time.time() < deadline:
            time.sleep(0.2)
            log.seek(0)
            url = next((w for w in log.read().split() if w.startswith("http://")), None)

        def get(path, **query):
            with urllib.request.urlopen(f"{url}data/{path}?{urllib.parse.urlencode(query)}".rstrip("?")) as answer:
                return answer.read()

        while time.time() < deadline:  # until the event files are read
            try:
                scalars = json.loads(get("plugin/scalars/scalars", run="run/train", tag="epoch_loss"))
                if scalars[-1][1] == STEPS:
                    break
            except (urllib.error.HTTPError, IndexError):
                pass
            time.sleep(0.2)
        yield get
    finally:
        process.terminate()
        process.wait()
        log.close()


def test_every_scalar_has_each_step_once(server):
    tags = json.loads(server("plugin/scalars/tags"))
    shared = {"epoch_loss", "epoch_accuracy", "images_per_second"}
    assert tags["run/validation"].keys() == shared
    assert tags["run/train"].keys() == shared | {"batch_loss", "batch_accuracy", "learning_rate"}
    for run, names in tags.items():
        for tag in names:
            points = json.loads(server("plugin/scalars/scalars", run=run, tag=tag))
            steps = [step for _, step, _ in points]
            assert steps == sorted(set(steps)), (run, tag, steps)
            if tag.startswith("batch_") or tag == "learning_rate":
                assert steps == list(range(1, STEPS + 1))
            if tag.startswith("epoch_"):
                assert steps == [24, 48]


def test_images_texts_and_graph_are_there(server):
    tags = json.loads(server("plugin/images/tags"))
    assert tags["run/validation"].keys() == {"predictions", "confusion_matrix"}
    for tag in tags["run/validation"]:
        entries = json.loads(server("plugin/images/images", run="run/validation", tag=tag, sample=0))
        assert [entry["step"] for entry in entries] == [24, 48]
        image = server("plugin/images/individualImage?" + entries[-1]["query"])
        assert min(Image.open(io.BytesIO(image)).size) > 300
    assert set(json.loads(server("plugin/text/tags"))["run/train"]) == {"flags", "model", "dataset"}
    for tag in ("flags", "model", "dataset"):
        assert len(json.loads(server("plugin/text/text", run="run/train", tag=tag))) == 1
    model = json.loads(server("plugin/text/text", run="run/train", tag="model"))
    assert "93,322" in model[0]["text"]
    graph = server("plugin/graphs/graph", run="run/train").decode()
    assert "SoftmaxCrossEntropyWithLogits" in graph
    assert "conv1" in graph


def test_the_learning_rate_is_that_of_the_step_itself(server):
    points = json.loads(server("plugin/scalars/scalars", run="run/train", tag="learning_rate"))
    assert [step for _, step, _ in points] == list(range(1, STEPS + 1))
    # A graph may round the last bit of 1e-3 otherwise, 1.2e-10; neighbouring steps are 2e-5 apart.
    np.testing.assert_allclose(
        [rate for _, _, rate in points], [RATE(i).numpy() for i in range(STEPS)], rtol=0, atol=1e-9
    )
