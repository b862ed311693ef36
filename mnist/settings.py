"""Settings, each declared once, in the class that uses it.

    class SAM(TrainStep):
        rho = Setting(0.05, "Radius of the perturbation of the weights; 0: none.", low=0)

`rho` is then a keyword of the constructor, an attribute whose range is checked, and the flag `--rho` of the command
that launches the class. A run is not resumed with another value.
"""

import contextlib
import copy
import numbers
import os
import types

from mnist import Error

import numpy as np
from absl import flags


def local_path(path):
    """Returns a path with `~` expanded.

    Raises: `mnist.Error` for a URL, because plain Python would take it for a local folder, and for a path that is not
      UTF-8.
    """
    path = os.fspath(path)
    if "://" in path:
        raise Error(f"{path} is a URL: name a folder of this machine, into which a remote one may be mounted.")
    path = os.path.expanduser(path)
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise Error(
            f"{os.path.abspath(path)!a} is not UTF-8, as TensorFlow's paths are: rename it, or link to it."
        ) from None
    return path


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", local_path: "a path"}


def _text(number):
    return str(number) if isinstance(number, int) else f"{number:g}"


class Setting:
    """A value that may be set, declared as a class attribute.

    Args:
      default: the value unless another is given. None: not set.
      help: a sentence or two with the meaning, the unit and the reason for the default.
      low, high: the least and the greatest allowed value.
      below: an upper bound that is not allowed itself.
      kind: int, float, bool, str, `local_path`, or a tuple of strings for a choice. `[float]` is a tuple of numbers,
        which a flag separates by commas. `[local_path]` is a tuple of paths, one for each repetition of the flag,
        because a path may contain commas. Default: the type of `default`.
      group: the heading of the flag in --help. Default: the name of the class.
      may_change: whether a run may be resumed with another value, because no number depends on it.
      is_step: whether the value is a step of the run. A run reports such a step if it is beyond its end.
    """

    def __init__(
        self, default, help, *, low=None, high=None, below=None, kind=None, group=None, may_change=False, is_step=False
    ):
        if kind is None:
            kind = [type(default[0])] if isinstance(default, (tuple, list)) else type(default)
        self.several = isinstance(kind, list)
        self.kind = kind[0] if self.several else kind
        self.repeated = self.several and self.kind is local_path
        self.help, self.low, self.high, self.below = help, low, high, below
        self.group, self.may_change, self.is_step = group, may_change, is_step
        self.name = "the default"
        self.default = None if default is None else self.check(default)

    def __set_name__(self, owner, name):
        self.name = name
        self.group = self.group or owner.__name__

    def __get__(self, instance, owner):
        if instance is None:
            return self
        if self.name not in vars(instance):
            raise AttributeError(f"{self.name} is not set yet: call super().__init__() first")
        return vars(instance)[self.name]

    def __set__(self, instance, value):
        vars(instance)[self.name] = self.check(value)

    def check(self, value):
        """Returns a Python value in the setting's own type.

        Raises: ValueError that names the setting and the expected values.
        """
        if value is None and self.default is None:
            return None
        values = list(value) if self.several and isinstance(value, (tuple, list)) else [value]  # tf.Module wraps lists
        if not all(map(self._fits, values)):
            raise ValueError(f"{self.name} is {values if self.several else value!r}, expected {self.expected()}")
        values = tuple(value if isinstance(self.kind, tuple) else self.kind(value) for value in values)
        return values if self.several else values[0]

    def _fits(self, value):
        if isinstance(self.kind, tuple):
            return value in self.kind
        if self.kind in (bool, str, local_path):
            return isinstance(value, {bool: (bool, np.bool_), str: str, local_path: (str, os.PathLike)}[self.kind])
        number = numbers.Integral if self.kind is int else numbers.Real
        if not isinstance(value, number) or isinstance(value, bool) or value != value:
            return False
        low = self.low is None or value >= self.low
        return low and (self.high is None or value <= self.high) and (self.below is None or value < self.below)

    def parse(self, text):
        """Returns the value of a flag's text, or a checked value. Raises: ValueError with the expected values."""
        if not isinstance(text, str):
            return self.check(text)
        parts = text.split(",") if self.several and not self.repeated else [text]
        parts = [] if self.several and not text else parts
        try:
            values = [self.kind(part) if self.kind in (int, float) else part for part in parts]
            return self.check(values if self.several else values[0])
        except ValueError:
            raise ValueError(f"expected {self.expected()}") from None

    def serialize(self, value):
        """Returns the text of a value, which `parse` reads."""
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def expected(self):
        """Returns the kind and the range in words."""
        if isinstance(self.kind, tuple):
            return f"one of {', '.join(self.kind)}"
        if self.repeated:
            return "paths, one for each time that the flag is given"
        text = "numbers, separated by commas, each" if self.several else _NAMES[self.kind]
        upper = "" if self.high is None else _text(self.high)
        upper = upper if self.below is None else f"below {_text(self.below)}"
        if self.low is None:
            return f"{text} {upper if self.below is not None else f'of at most {upper}'}" if upper else text
        return f"{text} from {_text(self.low)} to {upper}" if upper else f"{text} of at least {_text(self.low)}"


def settings_of(cls):
    """Returns the settings of a class and of its base classes, a dict by name.

    A subclass may give another default (`rho = 0.1`), or compute the value by a property, which is then not a setting.

    Raises: `mnist.Error` if two classes declare a setting of the same name, and neither inherits from the other.
    """
    found, owners = {}, {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Setting):
                other = owners.get(name, base)
                if not issubclass(base, other):
                    raise Error(
                        f"{cls.__name__}: {other.__name__} and {base.__name__} both have a setting {name!r}: "
                        "rename one in a subclass of its own."
                    )
                found[name], owners[name] = value, base
            elif name in found and hasattr(value, "__get__"):
                del found[name]
            elif name in found:
                found[name] = copy.copy(found[name])
                found[name].default = found[name].check(value)
    return found


def take(instance, values):
    """Sets all settings of an object, from a dict or to their defaults.

    Raises: TypeError for a name in the dict that is not a setting. ValueError for a value out of range.
    """
    settings = settings_of(type(instance))
    for name in values:
        if name not in settings:
            known = ", ".join(settings) or "none"
            raise TypeError(f"{type(instance).__name__} has no setting {name!r}; its settings: {known}")
    for name, setting in settings.items():
        setattr(instance, name, setting.check(values.get(name, setting.default)))


class _Parser(flags.ArgumentParser):
    def __init__(self, setting):
        self.parse, self.flag_type = setting.parse, setting.expected


class _RepeatedFlag(flags.Flag):
    """A flag whose value is a tuple of all values given, in place of the default."""

    def parse(self, argument):
        before = self.value if self.present else ()
        super().parse(argument)
        self.value = before + self.value

    def serialize(self):
        return "\n".join(f"--{self.name}={value}" for value in self.value or ())


@contextlib.contextmanager
def defined_flags(*classes):
    """Makes absl flags of the settings of the classes while entered. Each flag has its `setting` as an attribute.

    Raises: `mnist.Error` if another flag has the name of a setting.
    """
    defined = []
    try:
        for setting in [setting for cls in classes for setting in settings_of(cls).values()]:
            if setting.name in flags.FLAGS:
                raise Error(
                    f"the setting {setting.name!r} of {setting.group} has the name of another flag: rename one of them."
                )
            if setting.kind is bool:
                flag = flags.BooleanFlag(setting.name, setting.default, setting.help)
            else:
                make_flag = _RepeatedFlag if setting.repeated else flags.Flag
                flag = make_flag(_Parser(setting), setting, setting.name, setting.default, setting.help)
            flag.setting = setting
            flags.DEFINE_flag(flag)
            defined.append(setting.name)
        yield
    finally:
        for name in defined:
            delattr(flags.FLAGS, name)


def read_flags(*classes):
    """Returns a namespace with the values of the flags that `defined_flags` made of the classes."""
    names = [name for cls in classes for name in settings_of(cls)]
    return types.SimpleNamespace(**{name: flags.FLAGS[name].value for name in names})
