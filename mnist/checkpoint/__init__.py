"""Checkpoints, which survive a crash, and the checks that a resume is exact."""

from mnist.checkpoint.best import Best
from mnist.checkpoint.bundle import (
    NotFinite,
    assign,
    digest,
    layers_of,
    load,
    load_newest,
    remove_newer,
    save,
    steps,
    variables_of,
    variables_of_eval_model,
)
from mnist.checkpoint.comparable import plain
from mnist.checkpoint.fingerprint import attributes, fingerprint_of
from mnist.checkpoint.traced import check_attributes, check_unchanged, written_variables

__all__ = [
    "Best",
    "NotFinite",
    "assign",
    "attributes",
    "check_attributes",
    "check_unchanged",
    "digest",
    "fingerprint_of",
    "layers_of",
    "load",
    "load_newest",
    "plain",
    "remove_newer",
    "save",
    "steps",
    "variables_of",
    "variables_of_eval_model",
    "written_variables",
]
