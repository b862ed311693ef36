"""Fails each call of a run, cuts its power everywhere, and checks that nothing is lost: failing_calls.py --workdir=W

1. Failing calls. The n-th call of the run in its folder fails as on a full or broken disk, for every n. The calls are
   open, write, fsync, rename, link, mkdir, unlink and close.
2. Power losses. The calls of a run are recorded. After each, several states are built that a disk may have after a
   power loss. A disk may lose all that was not synced, tear it, or hold zeros, file by file and name by name.

Each case must go on, or end with one line of error. Then the same command must resume from the newest complete save. It
must end with the bits of an undisturbed run. A new run is tried, and a run that resumes a finished one. Exits with 0
only if no case failed.

    python scripts/proofs/failing_calls.py --every=9 --workdir=W

tries every ninth case.
"""

import collections
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import traceback

from mnist import Error, checkpoint, data, files, train
from mnist import run as mnist_run
from mnist.cli import run
from mnist.settings import Setting, local_path, settings_of

import keras
import numpy as np
import system_calls
from absl import flags
from torture import differences

FLAGS = ["--batch_size=20", "--checkpoint_every=2", "--keep_checkpoints=1", "--keep_best=validation_loss"]
FLAGS += ["--norms_every=0", "--histograms_every=0", "--intra_op_threads=1"]
DATA = "digits.npz"
STEPS = {"new": 3, "resumed": 4}  # the resumed run goes on where the new one ended
ERRORS = (errno.ENOSPC, errno.EIO)  # for the calls of one name in turn
RARE_ERRORS = (errno.EINTR, errno.EDQUOT)  # for one call in eight
DRAWS = 3  # random states for each power loss
TO_THE_END = 10  # of so many states, one is trained to the end. The others are read as a resume reads them
IN_ONE_PROCESS = 20  # cases
COUNT = 100  # images, for training and for the test
LIMIT = 120  # seconds without a call


def small():
    layers = [keras.layers.Flatten(name="flatten"), keras.layers.Dense(4, name="features")]
    layers += [keras.layers.Dense(10, name="logits")]
    return keras.Sequential([keras.Input([28, 28, 1], name="images"), *layers], name="small")


def become_command():
    """Makes this process one that calls `run_command`: prints each save that is complete, and each restore."""

    def reporting(method, word):
        def call(self, *arguments):
            found = method(self, *arguments)
            state = arguments[0] if arguments else found[0]
            print(f"{word} {state.step}.{len(state.history)}", flush=True)
            return found

        return call

    cls = mnist_run.Checkpointer
    cls.save, cls.restore = reporting(cls.save, "saved"), reporting(cls.restore, "restored")
    for name in settings_of(FailingCalls):  # the flags of this script
        delattr(flags.FLAGS, name)


def run_command(kind, workdir):
    """Trains as the command does. Returns: the exit code, and all that it printed."""
    source = os.path.join(os.path.dirname(os.path.dirname(workdir)), DATA)
    sys.argv = [__file__, *FLAGS, f"--data_dir={source}", f"--max_steps={STEPS[kind]}", f"--workdir={workdir}"]
    streams = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            train.launch(model=small)
            code = 0
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                code = print(code, file=sys.stderr) or 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            for descriptor, stream in enumerate(streams, 1):
                os.dup2(stream, descriptor)
                os.close(stream)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def newest(word, text):
    """Returns the step and the number of evaluations of the last line that a command has printed with a word."""
    found = re.findall(rf"^{word} (\d+)\.(\d+)$", text, re.MULTILINE)
    return tuple(map(int, found[-1])) if found else (0, 0)


def is_inside(path, folder):
    return path == folder or path.startswith(os.path.join(folder, ""))


class Run:
    """An undisturbed run, to compare with.

    Args:
      kind: "new" or "resumed".
      workdir: the folder of the run, which begins with the files that are there.
      before: the `Run` that left these files. None for a new run.

    Attributes:
      files: a dict from relative paths to the bytes of the files with which the run begins.
      calls: a list of the `Call`s within the folder and on the folders around it, and of those that print a save.
      count: an int. The number of calls within the folder.
      saves: a list of pairs. The number of the call that followed a save, and the save, as `newest` returns it.
      ended: the files with which the run ended.
      kept: a dict from each save to its files, as `read_folder` returns them.
    """

    def __init__(self, kind, workdir, before=None):
        self.kind, self.workdir, self.calls, self.count = kind, workdir, [], 0
        self.files = read_folder(workdir)
        self.saves, self.kept = [(-1, before.saves[-1][1] if before else (0, 0))], dict(before.kept if before else {})

        def program():
            become_command()
            code, text = run_command(kind, workdir)
            if code:
                sys.exit(text)

        code, text = system_calls.run(program, self._record, LIMIT)
        if code:
            raise Error(f"the undisturbed run failed: {text}")
        self.ended = read_folder(workdir)

    def _record(self, call):
        if call.data.startswith(b"saved "):
            self.saves.append((len(self.calls), save := newest("saved", call.data.decode())))
            there = read_folder(os.path.join(self.workdir, "checkpoints"))
            self.kept[save] = {name: value for name, value in there.items() if name.startswith(f"ckpt-{save[0]}.")}
        is_within = any(is_inside(path, self.workdir) for path in call.paths)
        self.count += is_within
        if is_within or any(is_inside(self.workdir, path) for path in call.paths):
            self.calls.append(call)
        return 0

    def saved(self, point):
        """Returns the newest save that was complete when a call began."""
        return [save for when, save in self.saves if when <= point][-1]

    def wrong_after(self, workdir, saved):
        """Resumes in a folder and compares. Returns: what is wrong, as text, or "".

        `saved` is the newest save that was complete.
        """
        code, text = run_command(self.kind, workdir)
        if code:
            return f"the resume ended with {code}: {text}"
        if (restored := newest("restored", text)) < saved:
            return f"resumed from {restored}, but {saved} had been saved: {text}"
        return self.wrong_in(workdir)

    def wrong_in(self, workdir):
        """Compares a finished run. Returns: what is wrong, as text, or ""."""
        different = differences(self.workdir, workdir)
        there = read_folder(workdir)
        for name in ("flags.txt", "model.txt", "metrics.jsonl"):
            if without_seconds(there.get(name, b"")) != without_seconds(self.ended[name]):
                different.append(name)
        return f"different: {', '.join(different)}" if different else ""


def without_seconds(content):
    """Returns the content of metrics.jsonl without times."""
    return re.sub(rb'"seconds": [\d.]+', b"", content)


def read_folder(folder):
    """Returns a dict from the relative paths of all files in a folder to their bytes."""
    found = {}
    for parent, _, names in os.walk(folder):
        for path in (os.path.join(parent, name) for name in names):
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found


def write_folder(folder, content):
    """Writes the files that `read_folder` returned. None makes a folder."""
    for name, value in content.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path) if value is not None else path, exist_ok=True)
        if value is not None:
            with open(path, "wb") as file:
                file.write(value)


def fail_call(reference, number, error, workdir, tell):
    """Lets one call of a run fail. Returns: what is wrong then, as text, or ""."""
    write_folder(workdir, reference.files)
    tell(folder=workdir, number=number, error=error)
    code, text = run_command(reference.kind, workdir)
    tell(folder="")
    for descriptor in os.listdir("/proc/self/fd"):  # a lock whose close failed, as no system leaves it
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}") in (workdir, os.path.join(workdir, ".lock")):
                os.close(int(descriptor))
    if not code:
        return reference.wrong_in(workdir)
    # Lines of TensorFlow's C++ may stand before.
    if (
        code != 1
        or not text.splitlines()[-1].startswith("error: ")
        or re.search("^(error: .*^error: |Traceback)", text, re.M | re.S)
    ):
        return f"it ended with {code}: {text}"
    return reference.wrong_after(workdir, max(newest("saved", text), reference.saves[0][1]))


@dataclasses.dataclass
class Change:
    """A change of a disk: of the content of a file, or of entries in folders.

    Attributes:
      when: an int. The number of its call.
      file: the number of the file whose content changes. None for a change of entries.
      data, offset: bytes and their position. If `data` is None, the file is cut at the position.
      entries: a dict from paths to the number of a file, `Disk.FOLDER`, or None for no entry.
      synced: the number of the call from which on it is on disk.
    """

    when: int
    file: int | None = None
    data: bytes | None = None
    offset: int = 0
    entries: dict = dataclasses.field(default_factory=dict)
    synced: float = math.inf


class Disk:
    """The changes that a run makes to a disk, in the order of its calls.

    Only fsync writes a change to disk. It writes the content of a file, or the entries of a folder.

    Args:
      reference: a `Run`.
    """

    FOLDER = -1

    def __init__(self, reference):
        self.changes, self._root = [], reference.workdir
        self._entries, self._next = {}, 0
        if reference.files:  # all of them are on disk
            self._entries[self._root] = self.FOLDER
        for name, value in reference.files.items():
            path = os.path.join(self._root, name)
            folders = [path := os.path.dirname(path) for _ in range(name.count("/"))]
            self._change(-1, entries=dict.fromkeys([self._root, *folders], self.FOLDER), synced=-1)
            self._change(-1, entries={os.path.join(self._root, name): self._new_file()}, synced=-1)
            self._change(-1, file=self._next - 1, data=value, synced=-1)
        for when, call in enumerate(reference.calls):
            self._take(when, call)

    def _new_file(self):
        self._next += 1
        return self._next - 1

    def _change(self, when, **values):
        self.changes.append(Change(when, **values))
        for path, file in self.changes[-1].entries.items():
            if file is None:
                self._entries.pop(path, None)
            else:
                self._entries[path] = file

    def _take(self, when, call):
        """Appends the changes of a call."""
        path, file = call.paths[-1], self._entries.get(call.paths[-1])
        if call.name == "open" and call.flags & os.O_CREAT and file is None:
            if os.path.dirname(path) in self._entries or path == self._root:
                self._change(when, entries={path: self._new_file()})
        elif call.name == "open" and call.flags & os.O_TRUNC and file is not None:
            self._change(when, file=file)
        elif call.name == "write" and file is not None:
            self._change(when, file=file, data=call.data, offset=call.offset)
        elif call.name == "truncate" and file is not None:
            self._change(when, file=file, offset=call.length)
        elif call.name == "mkdir" and file is None:
            self._change(when, entries={path: self.FOLDER})
        elif call.name == "unlink" and file is not None:
            self._change(when, entries={path: None})
        elif call.name == "link" and call.paths[0] in self._entries and file is None:
            self._change(when, entries={path: self._entries[call.paths[0]]})
        elif call.name == "rename" and call.paths[0] in self._entries:
            self._change(when, entries={call.paths[0]: None, path: self._entries[call.paths[0]]})
        elif call.name == "fsync":
            for change in self.changes:
                in_folder = any(os.path.dirname(entry) == path for entry in change.entries)
                if in_folder or (file not in (None, self.FOLDER) and change.file == file):
                    change.synced = min(change.synced, when)

    def state(self, point, keep):
        """Returns the files after a power loss before a call, a dict from relative paths to bytes.

        Args:
          keep: a function of a `Change` that was not synced. It returns the bytes that reach the disk, a bool for
            entries and for the cut of a file.
        """
        entries, content = {}, collections.defaultdict(bytes)
        for change in self.changes:
            if change.when >= point:
                break
            kept = change.data if change.data is not None else True
            if change.synced >= point:
                kept = keep(change)
            if change.entries and kept:
                entries |= change.entries
            elif change.data is None and change.file is not None and kept:
                content[change.file] = content[change.file][: change.offset].ljust(change.offset, b"\0")
            elif change.data is not None and kept:
                old = content[change.file].ljust(change.offset, b"\0")
                content[change.file] = old[: change.offset] + kept + old[change.offset + len(kept) :]
        found = {}
        for path, file in entries.items():
            if file is not None and is_inside(path, self._root) and self._is_reachable(path, entries):
                found[os.path.relpath(path, self._root)] = None if file == self.FOLDER else content[file]
        return found

    def _is_reachable(self, path, entries):
        """Returns whether all folders of a path within the run's folder are on disk."""
        while path != self._root:
            path = os.path.dirname(path)
            if entries.get(path) != self.FOLDER:
                return False
        return True


def tear(draw):
    """Returns a function for `Disk.state` that draws what of each change reaches the disk."""

    def keep(change):
        if change.data is None:
            return draw.random() < 0.5
        size = draw.randint(0, len(change.data))
        whole, zeros = change.data, bytes(len(change.data))
        return draw.choice([whole, b"", zeros, whole[:size], whole[:size] + zeros[size:]])

    return keep


def keep_all(change):
    return True if change.data is None else change.data


def power_losses(reference):
    """Returns the different states of the disk around each call of a run, a list of arguments for `lose_power`."""
    disk, draw, found = Disk(reference), random.Random(0), {}
    last = len(reference.calls)
    explained = {name: value for name, value in disk.state(last, keep_all).items() if value is not None}
    if explained != reference.ended:
        raise AssertionError("the recorded calls do not explain the files of the run")
    keeps = [
        keep_all,
        lambda change: False if change.data is None else b"",  # all is lost
        lambda change: True if change.data is None else b"",  # the content of files is lost
        *[tear(draw)] * DRAWS,
    ]
    shown = {}  # the event files as they were at the newest save
    for point in range(last + 1):
        if any(when == point for when, _ in reference.saves):
            shown = {name: value for name, value in disk.state(point, keep_all).items() if "tfevents" in name}
        for keep in keeps:
            state = disk.state(point, keep)
            key = hashlib.sha256(repr((reference.saved(point), sorted(state.items()))).encode()).digest()
            found.setdefault(key, (reference, point, state, shown))
    return list(found.values())


@functools.cache
def digest_of_save(reference, save):
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, reference.kept[save])
        return digest(*checkpoint.load(folder, save[0]))


def digest(tensors, metadata):
    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        found.update(repr((name, value.dtype, value.shape)).encode() + value.tobytes())
    return found.hexdigest()


def lose_power(reference, point, state, shown, to_the_end, workdir, tell):
    """Resumes from a state of the disk. Returns: what is wrong then, as text, or ""."""
    write_folder(workdir, state)
    saved = reference.saved(point)
    call = reference.calls[point - 1] if point else None
    where = f"after call {point}, {call.name} of {' '.join(call.paths)}: " if call else ""
    try:
        loaded = checkpoint.load_newest(os.path.join(workdir, "checkpoints"))
    except Error as error:
        return f"{where}{error}"
    save = (loaded[1]["step"], len(loaded[1]["history"])) if loaded else (0, 0)
    if save < saved:
        return f"{where}resumes from {save}, but {saved} had been saved"
    if loaded and digest(*loaded) != digest_of_save(reference, save):
        return f"{where}believes a wrong state as {save}"
    for name in ("flags.txt", "model.txt"):
        if loaded and state.get(name) not in (reference.ended[name], reference.files.get(name)):
            return f"{where}{name} is lost"
    lines = [without_seconds(files.get("metrics.jsonl") or b"").splitlines() for files in (state, reference.ended)]
    if lines[0][: saved[1]] != lines[1][: saved[1]]:
        return f"{where}metrics.jsonl lost evaluations before {saved}"
    for name, value in shown.items():
        found = state.get(name) or b""
        if not found.startswith(value) and found != reference.ended[name]:
            return f"{where}{name} lost events before {saved}"
    wrong = reference.wrong_after(workdir, saved) if to_the_end else ""
    return wrong and f"{where}{wrong}"


CASES = []  # functions of a folder and of `tell`. Processes inherit them, because they are large


class Judge:
    """The judge of the calls of a process that tries cases. The process writes to a file what it expects.

    Attributes:
      wrong: a dict from the numbers of the cases that ended to what was wrong, as text.
      now: the number of the case that has begun.
    """

    def __init__(self, control):
        self._control, self._folder, self._failed = control, "", ""
        self.wrong, self.now = {}, None

    def __call__(self, call):
        if call.name == "write" and call.paths == [self._control]:
            self._hear(**json.loads(call.data))
        elif self._folder and any(is_inside(path, self._folder) for path in call.paths):
            self._number -= 1
            if not self._number:
                paths = " ".join(os.path.relpath(path, self._folder) for path in call.paths)
                self._failed = f"{errno.errorcode[self._error]} in {call.name} of {paths}: "
                return self._error
        return 0

    def _hear(self, begins=None, folder=None, number=0, error=0, wrong=None):
        if begins is not None:
            self.now, self._failed = begins, ""
        if folder is not None:
            self._folder, self._number, self._error = folder, number, error
        if wrong is not None:
            self.end(wrong)

    def end(self, wrong):
        self.wrong[self.now] = wrong and f"{self._failed}{wrong}"


def try_cases(numbers, root):
    """Tries cases in processes. Returns: what is wrong, a list of texts, "" for each case that is as it should be."""
    control, wrong = os.path.join(root, f"control{numbers[0]}"), {}

    def program():
        become_command()
        descriptor = os.open(control, os.O_WRONLY | os.O_CREAT)

        def tell(**message):
            os.write(descriptor, json.dumps(message).encode())

        for number in numbers:
            if number not in wrong:
                folder = os.path.join(root, f"case{number}")
                tell(begins=number)
                tell(wrong=CASES[number](os.path.join(folder, "run"), tell))
                shutil.rmtree(folder, ignore_errors=True)

    while len(wrong) < len(numbers):
        judge = Judge(control)
        code, text = system_calls.run(program, judge, LIMIT)
        if code:
            judge.end(f"the process ended with {code}: {text[-2000:]}")
        wrong |= judge.wrong
    return list(wrong.values())


class FailingCalls:
    """The flags of this script."""

    workdir = Setting(None, "New folder for the runs.", kind=local_path)
    every = Setting(1, "Tries every n-th case. Default 1: all of them, which takes hours.", low=1)


def main(options):
    if not options.workdir:
        raise Error("--workdir is missing: name a new folder, as in --workdir=runs/failing_calls.")
    if os.path.exists(options.workdir):
        raise Error(f"--workdir={options.workdir} exists already: name a new folder.")
    root = os.path.realpath(options.workdir)
    with files.write_errors(f"write {root}"):
        os.makedirs(root)
    digits = data.load("digits")
    parts = {"train": digits.train, "test": digits.test}
    arrays = {f"{x}_{name}": array[:COUNT] for name, part in parts.items() for x, array in zip("xy", part, strict=True)}
    np.savez(os.path.join(root, DATA), **arrays)
    before, cases = None, {"failing calls": [], "power losses": []}
    for kind in STEPS:
        workdir = os.path.join(root, kind, "run")
        if before:
            shutil.copytree(before.workdir, workdir)
        before = reference = Run(kind, workdir, before)
        for number in range(1, reference.count + 1):
            error = RARE_ERRORS[number // 8 % 2] if number % 8 == 0 else ERRORS[number // 2 % 2]
            cases["failing calls"].append(functools.partial(fail_call, reference, number, error))
        for i, state in enumerate(power_losses(reference)):
            cases["power losses"].append(functools.partial(lose_power, *state, i % TO_THE_END == 0))
        print(f"{kind} run: {reference.count} calls in its folder", flush=True)
    summary, is_wrong = [], False
    for what, found in cases.items():
        CASES[:] = found[:: options.every]
        chunks = [range(len(CASES))[i : i + IN_ONE_PROCESS] for i in range(0, len(CASES), IN_ONE_PROCESS)]
        done = failed = 0
        with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
            for wrong in pool.imap_unordered(functools.partial(try_cases, root=root), chunks):
                for text in filter(None, wrong):
                    print(f"WRONG: {text}")
                done, failed = done + len(wrong), failed + sum(map(bool, wrong))
                print(f"{done} of {len(CASES)} {what}, {failed} failed", flush=True)
        summary.append(f"{done} {what}, {failed} failed")
        is_wrong |= failed > 0
    print("; ".join(summary))
    return int(is_wrong)


if __name__ == "__main__":
    run(main, FailingCalls)
