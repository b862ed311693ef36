"""What a run was started with: its flags.txt, one flag a line but for those that repeat no run: where, on what."""

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
_NO_PART = ("workdir", "resume", "devices", "worker_timeout")


def command():
    """How this program was started, as a person would type it again: python -m MODULE, or python FILE."""
    spec = sys.modules["__main__"].__spec__
    # After scripts/train.sh the caller's `python` is another one.
    python = "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)
    return f"{python} -m {spec.name}" if spec else f"{python} {shlex.quote(sys.argv[0])}"


def flags_text(dataset, data_dir):
    """The content of flags.txt, which repeats the run if it is given back as a --flagfile.

    Args:
      dataset, data_dir: values of these flags that bring the same data again.

    Raises: `mnist.Error` for a text that no line of a file can hold.
    """
    for name, flag in project_flags().items():
        for value in flag.value if isinstance(flag.value, (list, tuple)) else [flag.value]:
            held = not isinstance(value, str) or (value == value.rstrip() and len(value.splitlines()) <= 1)
            if not held and name not in _NO_PART:
                raise Error(f"--{name}={value!r} has a line break or a space at its end, which flags.txt cannot hold.")
    program = command().partition(" ")[2]
    first = f"# python {program} --flagfile=<this file> --workdir=<another folder>"
    return "\n".join([first, *_lines(dataset=dataset, data_dir=data_dir).values(), ""])


def hparams():
    """What tells runs of all commands apart, of each its value and its default: flags that the numbers depend on."""
    values = {"module": (command().partition(" ")[2].removeprefix("-m "), "mnist.train")}
    for name, flag in project_flags().items():
        setting = getattr(flag, "setting", None)
        if not (setting and setting.may_change) or setting.group == "length":
            values[name] = (flag.value, flag.default)
    return values


def _lines(**resolved):
    """The lines of flags.txt by flag; `resolved`: values that are known better than the flags say."""
    resolved |= {"intra_op_threads": num_threads()}
    lines = {}
    for name, flag in project_flags().items():
        value = resolved.get(name, flag.value)
        if value is not None and name not in _NO_PART:
            written = f"--{name}={str(value).lower()}" if flag.boolean else flag.serialize()
            lines[name] = f"--{name}={value}" if name in resolved else written
    return {name: line for name, line in lines.items() if line}  # a flag for many values may have none


def _read(workdir):
    """The first line of a run's flags.txt, and the others by flag; none if there is no such file.

    Raises: `mnist.Error` if it is damaged.
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
        lines[name] = f"{lines[name]}\n{line}" if name in lines else line  # a flag that is given many times
    return first, lines


def take_flags_of_run(workdir):
    """Gives the flags that were not given the values that the run in `workdir` was started with.

    A --flagfile tells all flags of a run: with one, nothing is taken.

    Raises: `mnist.Error` if the run was started by a command with other flags.
    """
    if not workdir or any(argument.lstrip("-").startswith("flagfile") for argument in sys.argv[1:]):
        return
    first, lines = _read(workdir)
    known = project_flags()
    if known["epochs"].present:  # says how long the run is, whatever it was told before
        lines.pop("max_steps", None)
    for name in lines:
        if name not in known:
            started = first.lstrip("# ").partition(" --flagfile")[0]
            raise Error(f"{workdir} holds a run of another command, with --{name}: resume it with {started}.")
    flags.FLAGS(["", *(line for name in lines if not known[name].present for line in lines[name].splitlines())])


def refuse_other_flags(workdir, scheduled):
    """Raises `mnist.Error` if the flags are not those of the run that is to be resumed, but for what may change.

    Args:
      scheduled: whether the learning rate depends on the length of the run, which may not change then.
    """
    if not glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "ckpt-*")):
        return
    _, old = _read(workdir)
    new, known, different = _lines(), project_flags(), []
    for name in [name for name in known if old and old.get(name) != new.get(name)]:
        setting = getattr(known[name], "setting", None)
        because = " (the schedule depends on it)" if scheduled and name in ("epochs", "max_steps") else ""
        if because or not (setting and setting.may_change):
            was, now = (_value(lines.get(name), name) for lines in (old, new))
            different.append(f"--{name} was {was}, is {now}{because}")
    if different:
        raise Error(
            f"{workdir} holds a run with other flags: {'; '.join(different[:3])}.\n"
            f"Resume it with --workdir={workdir} alone, or name another folder."
        )


def _value(line, name):
    """The value in a line of flags.txt, as typed."""
    if line is None:
        return "not set"
    return line.partition("=")[2] or ("false" if line == f"--no{name}" else "true")
