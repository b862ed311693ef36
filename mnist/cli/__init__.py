"""Flags, --help, flags.txt, signals, errors in one line."""

from mnist.cli import flagfile
from mnist.cli.command import close_names, did_you_mean, run
from mnist.cli.interrupt import CtrlC, Interrupt, Interrupted
from mnist.cli.other_program import check_arguments, check_flags, find_program, last_words
from mnist.cli.progress import Progress, in_short, say
from mnist.cli.setting_flags import read_flags

__all__ = [
    "CtrlC",
    "Interrupt",
    "Interrupted",
    "Progress",
    "check_arguments",
    "check_flags",
    "close_names",
    "did_you_mean",
    "find_program",
    "flagfile",
    "in_short",
    "last_words",
    "read_flags",
    "run",
    "say",
]
