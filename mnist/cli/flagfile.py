"""The file flags.txt of a run: one flag a line, so that `--flagfile` repeats the run and a resume takes its flags."""

import glob
import os
import re
import shlex
import shutil
import sys

from mnist import Error
from mnist.cli.command import project_flags
from mnist.machine import num_threads

from absl import flags

_NAME = "flags.txt"
_LEFT_OUT = ("workdir", "resume", "devices", "worker_timeout")  # where a run is computed, not what it computes
_LENGTH = ("epochs", "max_steps")


def command():
    """Returns how this program was started, as a person would type it again: python -m MODULE, or python FILE."""
    spec = sys.modules["__main__"].__spec__
    # scripts/train.sh starts a Python that may not be the first one on the PATH of its caller.
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    return f"{python} -m {spec.name}" if spec else f"{python} {shlex.quote(sys.argv[0])}"


def flags_text(dataset, data_dir):
    """Returns the content of flags.txt. As a --flagfile it repeats the run.

    Args:
      dataset, data_dir: values of these flags that load the same data again.

    Raises: `mnist.Error` for a text that a line of a file cannot hold.
    """
    for name, flag in project_flags().items():
        for value in flag.value if isinstance(flag.value, (list, tuple)) else [flag.value]:
            text = value if isinstance(value, str) and name not in _LEFT_OUT else ""
            if text != text.rstrip() or re.search(r"\s#", text) or len(text.splitlines()) > 1:
                found = f"--{name}={value!r} has a line break, a space at its end, or a comment"
                raise Error(f"{found}, which flags.txt cannot hold.")
    lines = [line for name, line in _lines(dataset=dataset, data_dir=data_dir).items() if _has_effect(name)]
    text = "\n".join([*lines, ""])
    program, count = command().partition(" ")[2], text.count("\n")
    return f"# python {program} --flagfile=<this file> --workdir=<another folder> ({count} lines follow)\n{text}"


def set_without_effect(names):
    """Marks flags that no number of this run depends on, so that flags.txt and HParams do not list them."""
    for name in names:
        flags.FLAGS[name].has_effect = False


def _has_effect(name):
    return name not in flags.FLAGS or getattr(flags.FLAGS[name], "has_effect", True)


def _lines(**resolved):
    """Returns the lines of flags.txt by flag. `resolved` replaces values, as "auto" by the data set that it found."""
    resolved |= {"intra_op_threads": num_threads()}
    lines = {}
    for name, flag in project_flags().items():
        value = resolved.get(name, flag.value)
        if value is not None and name not in _LEFT_OUT:
            written = f"--{name}={str(value).lower()}" if flag.boolean else flag.serialize()
            lines[name] = f"--{name}={value}" if name in resolved else written
    return {name: line for name, line in lines.items() if line}  # a flag that may be repeated may have no value


def _may_change(flag):
    return hasattr(flag, "setting") and flag.setting.may_change


def hparams():
    """Returns the program and the flags that the numbers depend on, a dict from names to (value, default)."""
    values = {"module": (command().partition(" ")[2].removeprefix("-m "), "mnist.train")}
    for name, flag in project_flags().items():
        if _has_effect(name) and (not _may_change(flag) or flag.setting.group == "length"):
            plain = flag.setting.plain if hasattr(flag, "setting") else lambda value: value
            values[name] = (plain(flag.value), plain(flag.default))
    return values


def compared_flags(lines=None):
    """Returns the flags that a resume repeats and the length of the run, a dict from names to values as typed.

    `lines` are the lines of a flags.txt by flag. Default: the flags of this process.
    """
    known, lines = project_flags(), lines or _lines()
    fixed = {name: line for name, line in lines.items() if name in _LENGTH or not _may_change(known.get(name))}
    return {name: ",".join(part.partition("=")[2] for part in line.splitlines()) for name, line in fixed.items()}


def differences(old, new):
    """Returns what differs between two dicts of `compared_flags`, a list of texts such as `("--seed", "0", "1")`.

    The length of a run may change if the learning rate does not depend on it. A setting that the run did not record,
    as an older version without it, had its default.
    """
    settings = {name: flag.setting for name, flag in project_flags().items() if hasattr(flag, "setting")}
    defaults = {name: setting.serialize(setting.default).lower() for name, setting in settings.items()}
    new = {name: value for name, value in new.items() if name in old or value.lower() != defaults.get(name)}
    because = dict.fromkeys(_LENGTH, " (the schedule depends on it)")
    may_change = _LENGTH if new.get("schedule", "constant") == "constant" else ()
    names = [name for name in {**new, **old} if name not in may_change and old.get(name) != new.get(name)]
    pairs = {name: (old.get(name, "not set"), new.get(name, "not set")) for name in names}
    return [(f"--{name}", was, f"{now}{because.get(name, '')}") for name, (was, now) in pairs.items()]


def holds_run(workdir):
    """Returns whether a folder has a checkpoint of a run, sound or damaged."""
    return bool(glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "ckpt-*")))


def refuse_other_flags(workdir):
    """Raises `mnist.Error` if the flags are not those that the run in `workdir` was started with.

    A command calls it before it loads the data, because other flags may need other data.
    """
    if not holds_run(workdir):
        return
    lines, dry_run = _read(workdir) or {}, project_flags().get("dry_run")
    if dry_run is not None and dry_run.value and lines.get("dry_run") != "--dry_run=true":
        raise Error(f"--dry_run: {workdir} holds a run already: name another folder, or leave out --workdir.")
    if lines and (different := differences(compared_flags(lines), compared_flags())):
        named = "; ".join(f"{name} was {was}, is {now}" for name, was, now in different[:3])
        raise Error(
            f"{workdir} holds a run with other flags: {named}.\n"
            f"Resume it with --workdir={workdir} alone, or name another folder."
        )


def _read(workdir):
    """Returns the lines of a run's flags.txt by flag, {} without a file, None if it is damaged.

    Raises: `mnist.Error` if another command wrote it.
    """
    first, lines = _parse(workdir)
    for name in lines or {}:
        if name not in project_flags():
            started = first.lstrip("# ").partition(" --flagfile")[0]
            raise Error(f"{workdir} holds a run of another command, with --{name}: resume it with {started}.")
    return lines


def _parse(workdir):
    """Returns the first line of a run's flags.txt, and the others by flag as `_read`, also of another command."""
    path, known, lines = os.path.join(workdir, _NAME), {*project_flags(), *_imported()}, {}
    if not os.path.isfile(path):
        return "", {}
    try:
        with open(path, encoding="utf-8") as file:
            first, *rest = file.read().splitlines() or [""]
    except UnicodeDecodeError:
        first, rest = "", []
    count = re.search(r"\((\d+) lines follow\)$", first)  # an older version did not write it
    is_cut = count and len(rest) < int(count[1])
    if not first.startswith("# ") or not all(line.startswith("-") for line in rest) or is_cut:
        return "", None
    for line in rest:
        name = line.lstrip("-").partition("=")[0]
        if name not in known and name.startswith("no") and name[2:] in known:
            name = name[2:]
        lines[name] = f"{lines[name]}\n{line}" if name in lines else line  # a flag that is given several times
    return first, lines


def _imported():
    """Returns the names of the flags that imported files of a user defined."""
    return [name for name in flags.FLAGS if hasattr(flags.FLAGS[name], "imported")]


def set_imported_flags(workdir):
    """Sets the flags that imported files defined to their values in the run in `workdir`, or to their defaults."""
    if imported := _imported():
        lines = _parse(workdir)[1] or {}
        for name in imported:
            flags.FLAGS[name].unparse()
        flags.FLAGS(["", *(line for name in imported for line in lines.get(name, "").splitlines())])


def lines_of_run(workdir):
    """Returns the lines of flags.txt by flag for the flags that were not given, so that a resume takes them.

    A --flagfile holds all flags of a run, so nothing is taken if one is given.

    Raises: `mnist.Error` if the file is damaged, if a run has lost it, or if the run is of a command with other flags.
    """
    if not workdir or any(argument.lstrip("-").startswith("flagfile") for argument in sys.argv[1:]):
        return {}
    lines, known = _read(workdir), project_flags()
    if lines is None or (not lines and holds_run(workdir)):
        what = f"{os.path.join(workdir, _NAME)} is {'missing' if lines == {} else 'damaged'}"
        raise Error(f"{what}: give all flags of the run and --flagfile={os.devnull}, or another folder.")
    if known["epochs"].present:  # gives the length of the run, which a former --max_steps would cut
        lines.pop("max_steps", None)
    return {name: line for name, line in lines.items() if not known[name].present}


def take_flags(lines):
    """Sets flags to the values in lines that `lines_of_run` returned. They do not count as typed."""
    flags.FLAGS(["", *(line for lines_of_flag in lines.values() for line in lines_of_flag.splitlines())])
    for name in lines:
        flags.FLAGS[name].present = 0
