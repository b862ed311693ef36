"""The file flags.txt of a run: one flag a line, so that `--flagfile` repeats the run and a resume takes its flags."""

import glob
import os
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
            fits = not isinstance(value, str) or (value == value.rstrip() and len(value.splitlines()) <= 1)
            if not fits and name not in _LEFT_OUT:
                raise Error(f"--{name}={value!r} has a line break or a space at its end, which flags.txt cannot hold.")
    program = command().partition(" ")[2]
    first = f"# python {program} --flagfile=<this file> --workdir=<another folder>"
    return "\n".join([first, *_lines(dataset=dataset, data_dir=data_dir).values(), ""])


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
        if not _may_change(flag) or flag.setting.group == "length":
            values[name] = (flag.value, flag.default)
    return values


def compared_flags(lines=None):
    """Returns the flags that a resume repeats and the length of the run, a dict from names to values as typed.

    `lines` are the lines of a flags.txt by flag. Default: the flags of this process.
    """
    known, lines = project_flags(), lines or _lines()
    fixed = {name: line for name, line in lines.items() if name in _LENGTH or not _may_change(known.get(name))}
    return {name: ",".join(part.partition("=")[2] for part in line.splitlines()) for name, line in fixed.items()}


def differences(old, new):
    """Returns what differs between two dicts of `compared_flags`, a list of texts as "--seed was 0, is 1".

    The length of a run may change if the learning rate does not depend on it.
    """
    because = dict.fromkeys(_LENGTH, " (the schedule depends on it)")
    may_change = _LENGTH if new.get("schedule", "constant") == "constant" else ()
    names = [name for name in {**new, **old} if name not in may_change and old.get(name) != new.get(name)]
    pairs = {name: (old.get(name, "not set"), new.get(name, "not set")) for name in names}
    return [f"--{name} was {was}, is {now}{because.get(name, '')}" for name, (was, now) in pairs.items()]


def refuse_other_flags(workdir):
    """Raises `mnist.Error` if the flags are not those that the run in `workdir` was started with.

    A command calls it before it loads the data, because other flags may need other data.
    """
    if not glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "ckpt-*")):
        return
    _, lines = _read(workdir)
    if lines and (different := differences(compared_flags(lines), compared_flags())):
        raise Error(
            f"{workdir} holds a run with other flags: {'; '.join(different[:3])}.\n"
            f"Resume it with --workdir={workdir} alone, or name another folder."
        )


def _read(workdir):
    """Returns the first line of a run's flags.txt, and the others by flag. Both are empty without a file.

    Raises: `mnist.Error` if the file is damaged.
    """
    path, known, lines = os.path.join(workdir, _NAME), project_flags(), {}
    if not os.path.isfile(path):
        return "", {}
    try:
        with open(path, encoding="utf-8") as file:
            first, *rest = file.read().splitlines() or [""]
    except UnicodeDecodeError:
        first, rest = "", []
    if not first.startswith("# ") or not all(line.startswith("-") for line in rest):
        raise Error(f"{path} is damaged: give all flags of the run and --flagfile={os.devnull}, or another folder.")
    for line in rest:
        name = line.lstrip("-").partition("=")[0]
        if name not in known and name.startswith("no") and name[2:] in known:
            name = name[2:]
        lines[name] = f"{lines[name]}\n{line}" if name in lines else line  # a flag that is given several times
    return first, lines


def set_imported_flags(workdir):
    """Sets the flags that imported files defined to their values in the run in `workdir`, or to their defaults."""
    imported = [name for name in flags.FLAGS if hasattr(flags.FLAGS[name], "imported")]
    if imported:
        _, lines = _read(workdir)
        for name in imported:
            flags.FLAGS[name].unparse()
        flags.FLAGS(["", *(line for name in imported for line in lines.get(name, "").splitlines())])


def take_flags_of_run(workdir):
    """Sets the flags that were not given to the values that the run in `workdir` was started with.

    A --flagfile holds all flags of a run, so nothing is taken if one is given.

    Raises: `mnist.Error` if the run was started by a command with other flags.
    """
    if not workdir or any(argument.lstrip("-").startswith("flagfile") for argument in sys.argv[1:]):
        return
    first, lines = _read(workdir)
    known = project_flags()
    if known["epochs"].present:  # gives the length of the run, which a former --max_steps would cut
        lines.pop("max_steps", None)
    for name in lines:
        if name not in known:
            started = first.lstrip("# ").partition(" --flagfile")[0]
            raise Error(f"{workdir} holds a run of another command, with --{name}: resume it with {started}.")
    flags.FLAGS(["", *(line for name in lines if not known[name].present for line in lines[name].splitlines())])
