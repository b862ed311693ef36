"""Refuses a step with a setting that nothing reads, because its flag would have no effect."""

import contextlib
import difflib
import types

from mnist import Error
from mnist.settings import READ, settings_of
from mnist.step.train_step import TrainStep

_WRAPPED = ("__func__", "fget", "func", "python_function", "__wrapped__")


def check_settings_are_used(step):
    """Raises `mnist.Error` for a setting of a traced `TrainStep` that nothing reads.

    A setting is used if it was read, or if code of the class mentions it, because a method may run later.
    """
    own = settings_of(type(step)).keys() - settings_of(TrainStep).keys() - vars(step).get(READ, set())
    if own and (unused := sorted(own - _words_of(type(step)))):
        name = type(step).__name__
        raise Error(
            f"nobody reads the setting {unused[0]!r} of {name}: use self.{unused[0]} in a method, or take it out.\n"
            "A setting of the model is a parameter of its function, see mnist.train.launch."
        )


def check_methods_are_called(step):
    """Raises `mnist.Error` for a method whose name is nearly one that `TrainStep` calls, if no code mentions it."""
    cls = type(step)
    own = {name: owner for owner in _own_classes(cls) for name, value in vars(owner).items() if callable(value)}
    for name in own.keys() - {*dir(TrainStep)} - _words_of(cls):
        known = [known for known in vars(TrainStep) if known[0] != "_" and callable(getattr(TrainStep, known))]
        if close := difflib.get_close_matches(name, known, 1, 0.8):
            raise Error(
                f"nothing calls {own[name].__name__}.{name}: did you mean {close[0]}? Or begin its name with _."
            )


def _own_classes(cls):
    return [other for other in cls.__mro__ if not issubclass(TrainStep, other)]


def _words_of(cls):
    """Returns the names and texts in the code of a class, without TrainStep, and of the functions that it names."""
    classes = _own_classes(cls)
    words, seen, waiting = set(), {}, [(value, {}) for other in classes for value in vars(other).values()]
    while waiting:
        value, names = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value  # keeps it, because Python gives the id of a deleted object again
        inner = []
        if isinstance(value, str):
            words.add(value)
        elif isinstance(value, (tuple, list, frozenset)):
            inner = value
        elif isinstance(value, types.CodeType):
            words |= {*value.co_names}
            inner = [*value.co_consts, *(names[name] for name in value.co_names if name in names)]
        elif isinstance(value, types.FunctionType):
            names = value.__globals__
            inner = [value.__code__, value.__defaults__, *(value.__closure__ or ())]
        elif isinstance(value, types.CellType):
            with contextlib.suppress(ValueError):  # it is empty
                inner = [value.cell_contents]
        elif not isinstance(value, (type, types.ModuleType)):
            inner = [getattr(value, name, None) for name in _WRAPPED]  # a property, a tf.function, a partial
        waiting += [(part, names) for part in inner]
    return words
