"""The flags of settings, defined while a command runs."""

import contextlib
import types

from mnist import Error
from mnist.settings import settings_of

from absl import flags


class _Parser(flags.ArgumentParser):
    def __init__(self, setting):
        self.parse, self.flag_type = setting.parse, setting.expected


class _Flag(flags.Flag):
    """A flag that may be given twice with one value, but not with two."""

    def parse(self, argument):
        if not (self.present and not self.allow_overwrite and self._parse(argument) == self.value):
            super().parse(argument)


class _RepeatedFlag(flags.Flag):
    """A flag whose value is a tuple of all values given, in place of the default."""

    def parse(self, argument):
        self.value = (self.value if self.present else ()) + self._parse(argument)
        self.present += 1

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
            if setting.name in flags.FLAGS:  # a user's settings are defined first
                owner = getattr(flags.FLAGS[setting.name], "setting", setting).owner
                raise Error(f"{owner}.{setting.name} has the name of another flag: give the setting another name.")
            is_bool, make_flag = setting.kind is bool, _RepeatedFlag if setting.repeated else _Flag
            parser, serializer = (flags.BooleanParser(), None) if is_bool else (_Parser(setting), setting)
            flag = make_flag(parser, serializer, setting.name, setting.default, setting.help, boolean=is_bool)
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
