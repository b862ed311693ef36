"""Settings, each declared once, in the class that uses it.

    class SAM(TrainStep):
        rho = Setting(0.05, "Radius of the perturbation of the weights; 0: none.", low=0)

`rho` is then a keyword of the constructor, an attribute whose range is checked, and the flag `--rho` of the command
that launches the class. A run is not resumed with another value. A function that makes a model declares its settings
as defaults of parameters, see `mnist.train.launch`.
"""

import copy
import enum
import numbers
import os
import pathlib
import re

from mnist import Error

import numpy as np


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


READ = "_settings_read"  # the attribute of an object with the names of the settings that were read
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", local_path: "a path"}
_NAMES[pathlib.Path] = _NAMES[local_path]
# Columns of results.json, of the tables of a sweep and of TensorBoard's HParams, which a setting of a user would hide.
_COLUMNS = (
    *("setting", "n", "module", "dataset", "parameters", "seed", "epochs", "steps", "batch_size", "train_seconds"),
    *("images_per_second", "step", "epoch", "seconds", "optimizer", "learning_rate", "max_steps", "jit_compile"),
    *("early_stopping_patience", "started", "command", "git_revision", "git_clean", "host", "processor", "cores"),
    *("python", "tensorflow", "keras", "numpy", "grey_range", "blank_images", "duplicate_images"),
    *("images_with_two_labels", "leaked_validation_images", "leaked_test_images", "classes_without_training_images"),
    *("classes_without_validation_images", "classes_without_test_images", "dataset_sha256", "dataset_test_sha256"),
    *("dataset_validation_sha256", "program_revision", "program_clean", "package_version", "package_revision"),
    *("package_clean", "portable"),
)
_METRIC = re.compile(r"((best_)?(train|validation|test)_)?(loss|accuracy)")


def _text(number):
    return str(number) if isinstance(number, int) else f"{number:g}"


def _is_kind(kind, base):
    return isinstance(kind, type) and issubclass(kind, base)


class _NotSet(Error, AttributeError):
    """A setting that is read before the constructor of the base class has set it."""


class Setting:
    """A value that may be set, declared as a class attribute.

    Args:
      default: the value unless another is given. None: not set.
      help: a sentence or two with the meaning, the unit and the reason for the default.
      low, high: the least and the greatest allowed number.
      below: an upper bound that is not allowed itself.
      kind: int, float, bool, str, `local_path`, `pathlib.Path`, an `enum.Enum` whose members are chosen by name, or a
        tuple of strings for a choice. `[float]` is a tuple of numbers, which a flag separates by commas. `[local_path]`
        is a tuple of paths, one for each repetition of the flag, because a path may contain commas. Default: the type
        of `default`.
      group: the heading of the flag in --help. Default: the name of the class.
      may_change: whether a run may be resumed with another value, because no number depends on it.
      is_step: whether the value is a step of the run. A run reports such a step if it is beyond its end.
    """

    def __init__(
        self,
        default,
        help="",
        *,
        low=None,
        high=None,
        below=None,
        kind=None,
        group=None,
        may_change=False,
        is_step=False,
    ):
        several = isinstance(default, (tuple, list))
        self.default = [_of_python(value) for value in default] if several else _of_python(default)
        if kind is None:
            kind = [type(value) for value in self.default][:1] if several else type(self.default)
        self.several = isinstance(kind, list)
        self.kind = (kind or [None])[0] if self.several else kind
        self.kind = pathlib.Path if _is_kind(self.kind, pathlib.PurePath) else self.kind
        self.repeated = self.several and self.kind in (local_path, pathlib.Path)
        self.help, self.low, self.high, self.below = help, low, high, below
        self.group, self.may_change, self.is_step = group, may_change, is_step
        self.name, self.owner = "the value", ""

    def __set_name__(self, owner, name):
        self.name, self.owner = name, owner.__name__
        self.group = self.group or owner.__name__

    def __get__(self, instance, owner):
        if instance is None:
            return self
        if self.name not in vars(instance):
            raise _NotSet(f"{type(instance).__name__} reads {self.name!r} too early: call super().__init__() first.")
        vars(instance).setdefault(READ, set()).add(self.name)
        return vars(instance)[self.name]

    def __set__(self, instance, value):
        vars(instance)[self.name] = self.check(value)

    def check_declaration(self):
        """Converts the default to its kind. Raises: `mnist.Error` that names the class and what it declares wrongly."""
        if fault := self._fault():
            raise Error(f"{self.owner}.{self.name} {fault}.")
        if self.default is not None:
            self.default = self.check(self.default)

    def _fault(self):
        bounds = [bound for bound in (self.low, self.high, self.below) if bound is not None]
        if not isinstance(self.help, str) or not self.help.strip():
            return "has no help: say in a sentence what it means"
        if self.kind in (None, type(None)):
            return f"has the default {self.default!r}, which shows no type: give kind=, such as kind=float"
        is_choice = isinstance(self.kind, tuple) and all(isinstance(name, str) for name in self.kind) and self.kind
        if not is_choice and not _is_kind(self.kind, enum.Enum) and self.kind not in list(_NAMES):
            found = getattr(self.kind, "__name__", self.kind)
            return f"is of the kind {found}, expected int, float, bool, str, a path, an Enum or a tuple of names"
        if self.several and self.kind is bool:
            return "is a list of bool, which no flag can hold: use a list of int"
        if bounds and self.kind not in (int, float):
            return "has bounds, which only numbers have"
        if not all(isinstance(bound, numbers.Real) and bound == bound for bound in bounds):
            return "has a bound that is not a number"
        if None not in (self.high, self.below):
            return "has both high= and below=: leave one out"
        if self.low is not None and bounds[1:] and (self.low > bounds[1] or self.low == self.below):
            return f"allows no value: low={_text(self.low)} is above the upper bound"
        try:
            self.check(self.default)
        except ValueError as error:
            return f"has a default that it does not allow: {error}"
        return ""

    def check(self, value):
        """Returns a Python value in the setting's own type.

        Raises: ValueError that names the setting and the expected values.
        """
        if value is None and self.default is None:
            return None
        values = list(value) if self.several and isinstance(value, (tuple, list)) else [value]  # tf.Module wraps lists
        if not all(map(self._fits, values)):
            raise ValueError(f"{self.name} is {values if self.several else value!r}, expected {self.expected()}")
        values = tuple(map(self._convert, values))
        return values if self.several else values[0]

    def _fits(self, value):
        if isinstance(self.kind, tuple):
            return value in self.kind
        if _is_kind(self.kind, enum.Enum):
            return isinstance(value, self.kind) or (isinstance(value, str) and value in self.kind.__members__)
        if self.kind in (local_path, pathlib.Path):
            return isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))
        if self.kind in (bool, str):
            return isinstance(value, (bool, np.bool_) if self.kind is bool else str)
        number = numbers.Integral if self.kind is int else numbers.Real
        if not isinstance(value, number) or isinstance(value, bool) or value != value:
            return False
        low = self.low is None or value >= self.low
        return low and (self.high is None or value <= self.high) and (self.below is None or value < self.below)

    def _convert(self, value):
        if _is_kind(self.kind, enum.Enum):
            return value if isinstance(value, self.kind) else self.kind[value]
        if self.kind is pathlib.Path:
            return pathlib.Path(local_path(value))
        return value if isinstance(self.kind, tuple) else self.kind(value)

    def parse(self, text):
        """Returns the value of a flag's text, or a checked value. Raises: ValueError with the expected values."""
        if not isinstance(text, str):
            return self.check(text)
        parts = text.split(",") if self.several and not self.repeated else [text]
        parts = [] if self.several and not self.repeated and not text else parts
        try:
            values = [self.kind(part) if self.kind in (int, float) else part for part in parts]
            return self.check(values if self.several else values[0])
        except ValueError:
            raise ValueError(f"expected {self.expected()}") from None

    def plain(self, value):
        """Returns a checked value as JSON holds it: the name of a member of an Enum, the text of a path."""
        if isinstance(value, tuple):
            return tuple(map(self.plain, value))
        if isinstance(value, enum.Enum):
            return value.name
        return str(value) if isinstance(value, pathlib.PurePath) else value

    def serialize(self, value):
        """Returns the text of a value, which `parse` reads."""
        value = self.plain(value)
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    def expected(self):
        """Returns the kind and the range in words."""
        choices = list(self.kind.__members__) if _is_kind(self.kind, enum.Enum) else self.kind
        if isinstance(choices, (tuple, list)):
            return f"{'some' if self.several else 'one'} of {', '.join(choices)}"
        if self.repeated:
            return "paths, one for each time that the flag is given"
        text = "numbers, separated by commas, each" if self.several else _NAMES[self.kind]
        upper = "" if self.high is None else _text(self.high)
        upper = upper if self.below is None else f"below {_text(self.below)}"
        if self.low is None:
            return f"{text} {upper if self.below is not None else f'of at most {upper}'}" if upper else text
        return f"{text} from {_text(self.low)} to {upper}" if upper else f"{text} of at least {_text(self.low)}"


def _of_python(value):
    """Returns a number of NumPy as a number of Python."""
    return value.item() if isinstance(value, np.generic) else value


def check_own_settings(cls, base=object):
    """Checks the settings that a user's class declares itself, and their names.

    Raises: `mnist.Error` for a setting that is unfit, or that hides an attribute of `base` or a column of the tables.
    """
    for name, setting in vars(cls).items():
        if isinstance(setting, Setting):
            setting.check_declaration()
            hidden = "a column of results.json or of TensorBoard's HParams"
            if not isinstance(getattr(base, name, setting), Setting):
                hidden = f"an attribute of {base.__name__}"
            elif name not in _COLUMNS and not _METRIC.fullmatch(name):
                continue
            raise Error(f"{cls.__name__}.{name} would hide {hidden}: give the setting another name.")


def settings_of(cls):
    """Returns the settings of a class and of its base classes, a dict by name.

    A subclass may give another default (`rho = 0.1`), or compute the value by a property, which is then not a setting.

    Raises: `mnist.Error` if two classes declare a setting of the same name, and neither inherits from the other. Also
      for a setting that is unfit.
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
                continue
            elif name in found:
                found[name] = copy.copy(found[name])
                found[name].owner, found[name].default = base.__name__, value
            else:
                continue
            found[name].check_declaration()
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


def values_of(instance):
    """Returns all settings of an object as plain JSON, a dict by name. It does not count as a use of a setting."""
    return {name: setting.plain(vars(instance)[name]) for name, setting in settings_of(type(instance)).items()}
