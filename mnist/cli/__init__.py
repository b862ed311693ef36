"""Flags, --help, flags.txt, signals, errors in one line."""

from mnist.cli import flagfile
from mnist.cli.command import project_flags, run
from mnist.cli.interrupt import Interrupt
from mnist.cli.progress import Progress, in_short, say

__all__ = [
    "Interrupt",
    "Progress",
    "flagfile",
    "in_short",
    "project_flags",
    "run",
    "say",
]
