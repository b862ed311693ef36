"""Refuses a step with a setting that nothing reads, because its flag would have no effect."""

import difflib
import types

from mnist import Error
from mnist.checkpoint.reads import own_classes, read_by
from mnist.settings import READ, settings_of
from mnist.step.train_step import TrainStep


def check_settings_are_used(step):
    """Raises `mnist.Error` for a setting of a traced `TrainStep` that nothing reads.

    A setting is used if it was read, or if code of the class mentions it, because a method may run later.
    """
    names = {name for cls in own_classes(step) for name in vars(cls)}
    own = settings_of(type(step)).keys() & names - settings_of(TrainStep).keys() - vars(step).get(READ, set())
    if own and (unused := sorted(own - _words_in(read_by(step, names).values()))):
        name = type(step).__name__
        raise Error(
            f"nobody reads the setting {unused[0]!r} of {name}: use self.{unused[0]} in a method, or take it out.\n"
            "A setting of the model is a parameter of its function, see mnist.train.launch."
        )


def check_methods_are_called(step):
    """Raises `mnist.Error` for a method whose name is nearly one that `TrainStep` calls, if no code mentions it."""
    own = {name: cls for cls in own_classes(step) for name, value in vars(cls).items() if callable(value)}
    known = [name for name in vars(TrainStep) if name[0] != "_" and callable(getattr(TrainStep, name))]
    close = {name: difflib.get_close_matches(name, known, 1, 0.8) for name in own.keys() - {*dir(TrainStep)}}
    close = {name: matches[0] for name, matches in close.items() if matches}
    for name in close.keys() - _words_in(read_by(step, own).values()) if close else ():
        raise Error(f"nothing calls {own[name].__name__}.{name}: did you mean {close[name]}? Or begin its name with _.")


def _words_in(values):
    """Returns the names and the texts in the code of functions, and the texts among other values."""
    words, seen, waiting = set(), set(), [*values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, types.FunctionType):
            waiting += [value.__code__, value.__defaults__]
        elif isinstance(value, types.CodeType):
            words |= {*value.co_names}
            waiting += value.co_consts
        elif isinstance(value, str):
            words.add(value)
        elif isinstance(value, (tuple, list, frozenset)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value
    return words
