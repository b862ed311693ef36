"""A profile holds exactly the steps that --profile names, and changes no number."""

from mnist import checkpoint, data
from mnist.loop import Interrupted, train_and_evaluate
from mnist.model import CNN
from mnist.run import Profiler
from mnist.step import TrainStep

import keras
import pytest
from conftest import StopAfter
from tensorflow.tsl.profiler.protobuf import xplane_pb2


def train(workdir, **options):
    """Trains 20 steps on digits in loops of 7. Returns: the bytes of all variables."""
    keras.utils.set_random_seed(0)
    step = TrainStep(CNN(), keras.optimizers.Adam())
    train_and_evaluate(step, data.load("digits"), str(workdir), epochs=1, max_steps=20, steps_per_loop=7, **options)
    return {name: variable.numpy().tobytes() for name, variable in checkpoint.variables_of(step).items()}


def count_steps(workdir):
    """Returns the number of steps in each profile of a run, the oldest first."""
    counts = []
    for path in sorted(workdir.glob("train/plugins/profile/*/*.xplane.pb")):
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
        names = [p.event_metadata[e.metadata_id].name for p in space.planes for line in p.lines for e in line.events]
        counts.append(names.count("IteratorGetNextOp::DoCompute"))
    return counts


def test_a_profile_holds_these_steps_and_changes_no_bit(tmp_path):
    plain = train(tmp_path / "plain")
    assert train(tmp_path / "profiled", profile="3:12") == plain
    assert count_steps(tmp_path / "plain") == []
    assert count_steps(tmp_path / "profiled") == [10]


def test_a_stopped_run_keeps_its_profile_and_profiles_the_rest_when_it_resumes(tmp_path):
    with pytest.raises(Interrupted):  # the loops end at 4, 11 and 18
        train(tmp_path, profile="5:20", interrupt=StopAfter(3))
    assert count_steps(tmp_path) == [14]
    train(tmp_path, profile="5:20")
    assert sum(count_steps(tmp_path)) == 16


def test_profiles_of_one_second_are_all_kept(tmp_path):
    for _ in range(3):
        with Profiler(str(tmp_path), (1, 1)).loop(0, 1):
            pass
    assert len(list(tmp_path.glob("train/plugins/profile/*/*.xplane.pb"))) == 3
