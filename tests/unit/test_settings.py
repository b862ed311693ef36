"""A setting is a keyword, an attribute with a range, a flag, and a part of the fingerprint."""

import enum
import json
import os
import pathlib

from mnist import Error
from mnist.checkpoint.fingerprint import attributes
from mnist.cli.setting_flags import defined_flags, read_flags
from mnist.settings import Setting, local_path, settings_of, take
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from absl import flags
from conftest import make_linear


class Hue(enum.Enum):
    RED, GREEN = "r", "g"


class Radius(TrainStep):
    rho = Setting(0.05, "Radius.", low=0)
    rounds = Setting(1, "Rounds.", low=1, high=9)
    share = Setting(0.5, "Share.", low=0.0, below=1.0)
    mode = Setting("fast", "Mode.", kind=("fast", "slow"))
    sizes = Setting((0.1, 0.2), "Sizes.", low=0.0)
    loud = Setting(False, "Whether it is loud.")
    limit = Setting(None, "Limit, if any.", kind=float)
    top = Setting(np.float32(0.5), "Number with an upper bound alone.", high=1.0)
    under = Setting(-3.0, "Number below a bound.", below=1.0)
    hues = Setting([Hue.RED], "Some of several.")
    place = Setting(pathlib.Path("a"), "Path.")
    weights = Setting([], "Numbers, by default none.", kind=[float])


def make(cls=Radius, **settings):
    return cls(make_linear(), keras.optimizers.Adam(), **settings)


def parse(cls, *arguments):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["test", *arguments])
    return read_flags(cls)


def test_settings_are_keywords_with_defaults_and_compared_attributes():
    step = make(rho=0.1, sizes=[1, 2], seed=3)
    values = {"rho": 0.1, "rounds": 1, "mode": "fast", "sizes": (1, 2), "loud": False, "limit": None, "seed": 3}
    assert {name: getattr(step, name) for name in values} == values
    compared = values | {"slices": 1, "share": 0.5, "sizes": [1, 2]}
    assert {name: attributes(step)[name] for name in compared} == compared


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "rho is -0.1, expected a number of at least 0"),
        ({"rho": float("nan")}, "rho is nan, expected"),
        ({"rounds": 10}, "rounds is 10, expected an integer from 1 to 9"),
        ({"share": 1.0}, r"share is 1\.0, expected a number from 0 to below 1"),
        ({"mode": "slower"}, "mode is 'slower', expected one of fast, slow"),
        ({"sizes": [0.1, -1]}, r"sizes is \[0\.1, -1\], expected numbers, separated by commas, each of at least 0"),
        ({"loud": 1}, "loud is 1, expected true or false"),
        ({"top": 1.5}, "top is 1.5, expected a number of at most 1"),
        ({"under": 1}, "under is 1, expected a number below 1"),
    ],
)
def test_a_value_out_of_range_is_named_at_the_constructor_and_at_the_attribute(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
    ((name, value),) = settings.items()
    step = make()
    with pytest.raises(ValueError, match=message):
        setattr(step, name, value)
    assert getattr(step, name) == getattr(make(), name)


class First(TrainStep):
    alpha = Setting(0.1, "One.")


class Second(TrainStep):
    alpha = Setting(0.2, "Another.")


def test_one_name_in_two_unrelated_classes_is_refused_with_both_named():
    class Both(First, Second):
        pass

    class Chosen(First, Second):
        alpha = Setting(0.3, "Which?")

    for cls in (Both, Chosen):
        with pytest.raises(Error, match=f"{cls.__name__}: Second and First both have a setting 'alpha'"):
            make(cls)
        with pytest.raises(Error, match="Second and First"), defined_flags(cls):
            pass


def test_a_subclass_gives_another_default_or_range_or_computes_the_value():
    class Default(First):
        alpha = 0.5

    class Range(First):
        alpha = Setting(5, "Larger.", low=5)

    class Computed(First):
        @property
        def alpha(self):
            return self.seed + 0.5

    assert make(Default).alpha == 0.5
    assert make(Default, alpha=0.7).alpha == 0.7
    assert make(Range).alpha == 5
    with pytest.raises(ValueError, match="alpha is 4, expected an integer of at least 5"):
        make(Range, alpha=4)
    assert make(Computed, seed=1).alpha == 1.5
    assert settings_of(Computed).keys() == {"slices"}
    with defined_flags(Default):
        assert flags.FLAGS["alpha"].default == 0.5


def test_settings_are_flags_while_entered_and_round_trip_through_their_text():
    before = set(flags.FLAGS)
    try:
        with defined_flags(Radius):
            assert vars(parse(Radius)) == {name: getattr(make(), name) for name in settings_of(Radius)}
            typed = ["--rho=1e-5", "--rounds=3", "--mode=slow", "--sizes=0.3,2", "--loud", "--limit=1", "--top=0.25"]
            values = parse(Radius, *typed, "--hues=GREEN,RED", "--place=b/c", "--weights=1,2")
            assert (values.sizes, values.hues, values.weights) == ((0.3, 2.0), (Hue.GREEN, Hue.RED), (1.0, 2.0))
            assert (values.place, values.top) == (pathlib.Path("b/c"), 0.25)
            step = make(**vars(values))
            texts = [flags.FLAGS[name].serialize() for name in settings_of(Radius)]
            assert "--sizes=0.3,2.0" in texts
            assert parse(Radius, *texts) == values
            assert {name: getattr(step, name) for name in vars(values)} == vars(values)
            json.dumps(attributes(step))
            for bad in ["rho=-1", "rounds=10", "mode=x", "sizes=0.1,x", "sizes=-1", "sizes=nan", "limit=x"]:
                with pytest.raises(flags.IllegalFlagValueError, match="expected"):
                    parse(Radius, f"--{bad}")
            with pytest.raises(Error, match=r"TrainStep\.slices has the name of another flag"), defined_flags(Radius):
                pass
            assert "rho" in flags.FLAGS
    finally:
        flags.FLAGS.mark_as_parsed()
    assert set(flags.FLAGS) == before


def test_paths_are_given_one_by_one_and_may_contain_commas():
    class Options:
        workdir = Setting(None, "Folders.", kind=[local_path])
        others = Setting(["x"], "More folders.", kind=[local_path])

    try:
        with defined_flags(Options):
            assert vars(parse(Options)) == {"workdir": None, "others": ("x",)}
            values = parse(Options, "--workdir=lr=0.1,seed=0", "--workdir", "~/b", "--others=y", "--others=y")
            assert values.workdir == ("lr=0.1,seed=0", os.path.expanduser("~/b"))
            assert values.others == ("y", "y")  # in place of the default
            texts = [line for name in vars(values) for line in flags.FLAGS[name].serialize().splitlines()]
            assert parse(Options, *texts) == values
            assert "one for each time" in flags.FLAGS["workdir"].setting.expected()
            with pytest.raises(Error, match="gs://b is a URL"):
                parse(Options, "--workdir=a", "--workdir=gs://b")
    finally:
        flags.FLAGS.mark_as_parsed()
    options = Options()
    take(options, {"workdir": "one, alone"})
    assert options.workdir == ("one, alone",)
    with pytest.raises(ValueError, match=r"workdir is .*, expected paths, one for each time that the flag is given"):
        options.workdir = ["a", 3]


def test_a_setting_that_is_read_before_the_constructor_of_the_base_is_refused():
    class Early(TrainStep):
        rho = Setting(0.1, "Radius.")

        def __init__(self, model, optimizer, **kwargs):
            self.twice = 2 * self.rho
            super().__init__(model, optimizer, **kwargs)

    with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\) first"):
        make(Early)
