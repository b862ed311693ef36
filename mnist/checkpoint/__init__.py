"""Checkpoints, which survive a crash, and the checks that a resume is exact."""

from mnist.checkpoint.best import Best
from mnist.checkpoint.bundle import NotFinite, assign, check_finite, load, load_newest, remove_newer, save, steps
from mnist.checkpoint.comparable import differences_in, plain, show
from mnist.checkpoint.fingerprint import attributes, fingerprint_of, names_of_attributes
from mnist.checkpoint.state import dump as dump_state
from mnist.checkpoint.state import restore as restore_state
from mnist.checkpoint.traced import RESERVED, written_variables
from mnist.checkpoint.variables import digest, layers_of, variables_of, variables_of_eval_model
from mnist.checkpoint.watch import Watch

__all__ = [
    "RESERVED",
    "Best",
    "NotFinite",
    "Watch",
    "assign",
    "attributes",
    "check_finite",
    "differences_in",
    "digest",
    "dump_state",
    "fingerprint_of",
    "layers_of",
    "load",
    "load_newest",
    "names_of_attributes",
    "plain",
    "remove_newer",
    "restore_state",
    "save",
    "show",
    "steps",
    "variables_of",
    "variables_of_eval_model",
    "written_variables",
]
