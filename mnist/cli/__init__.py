"""Flags, --help, flags.txt, signals, errors in one line."""

from mnist.cli import flagfile
from mnist.cli.command import project_flags, run
from mnist.cli.interrupt import CtrlC, Interrupt, Interrupted
from mnist.cli.other_program import check_arguments, check_flags, find_program, last_words
from mnist.cli.progress import Progress, in_short, say

__all__ = [
    "CtrlC",
    "Interrupt",
    "Interrupted",
    "Progress",
    "check_arguments",
    "check_flags",
    "find_program",
    "flagfile",
    "in_short",
    "last_words",
    "project_flags",
    "run",
    "say",
]
