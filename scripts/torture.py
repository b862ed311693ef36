"""Kills a run again and again and checks that nothing is lost: python scripts/torture.py --workdir=W --kills=20

Trains once undisturbed in W/undisturbed, then once more in W/killed with `kill -9` at random moments:
anywhere, during start-up, and as soon as a save begins. Then it compares the last checkpoint, every
variable and the metrics of every epoch, and results.json, times aside. What follows `--` goes to
python -m mnist.train, or to --module. Exits with 0 only if all is equal to the last bit.
"""

import contextlib
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import time

from mnist import Error, checkpoint, files
from mnist.command import run
from mnist.settings import Setting, local_path

from sweep import check_arguments, find_program, last_words

# One image at a time makes the evaluation long enough to be hit, and the many saves likewise.
DEFAULT_FLAGS = ["--epochs=2", "--checkpoint_every=100", "--eval_batch_size=1"]
MOMENTS = ("anywhere", "start-up", "save")


def start(program, workdir, arguments):
    """Starts a training run, its output in W.log. Returns: the process."""
    with open(f"{workdir}.log", "a") as log:
        command = [sys.executable, *program, f"--workdir={workdir}", *arguments]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def failure(what, workdir):
    """An `Error` in the words of a run that ended when it should not."""
    with open(f"{workdir}.log", errors="replace") as file:
        said = last_words(file.read()).removeprefix("error: ")
    if os.path.exists(workdir):
        return Error(f"{what} failed: {said} See {workdir}.log.")
    os.remove(f"{workdir}.log")  # it did not begin: the same --workdir is new again
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(workdir))
    return Error(f"{what} failed: {said}")


def newest_step(workdir):
    """The step of the newest checkpoint, 0 if there is none."""
    paths = glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "ckpt-*.index"))
    return max((int(path.rpartition("-")[2].removesuffix(".index")) for path in paths), default=0)


def kill_at(process, workdir, moment, seconds):
    """Kills a run `seconds` after its start, or, at a save, as the first one after that begins.

    Returns: whether there was still something to kill.
    """
    time.sleep(seconds)
    while moment == "save" and process.poll() is None:
        if glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "tmp*")):
            break
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def differences(one, other):
    """Compares two finished runs but for their times. Returns: names of all that differs."""
    loaded = [checkpoint.load_newest(os.path.join(workdir, "checkpoints")) for workdir in (one, other)]
    (tensors, state), (other_tensors, other_state) = loaded
    names = [n for n in tensors.keys() | other_tensors.keys() if not _equal(tensors.get(n), other_tensors.get(n))]
    names += [n for n in state if n != "seconds" and state[n] != other_state.get(n)]
    results = []
    for workdir in (one, other):
        with open(os.path.join(workdir, "results.json")) as file:
            results.append(json.load(file))
    times = {"train_seconds", "images_per_second"}
    names += [n for n in results[0].keys() - times if results[0][n] != results[1].get(n)]
    return sorted(names)


def _equal(a, b):
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def torture(workdir, arguments, *, kills, seed, module="mnist.train"):
    """Trains undisturbed and killed. Returns: names of what differs between the two, none if all is well."""
    undisturbed, killed = os.path.join(workdir, "undisturbed"), os.path.join(workdir, "killed")
    program = find_program(module)
    check_arguments(arguments, ["workdir"])
    with files.write_errors(f"write {workdir}"):
        os.makedirs(workdir, exist_ok=True)
    began = time.monotonic()
    if start(program, undisturbed, arguments).wait():
        raise failure("the undisturbed run", undisturbed)
    if not newest_step(undisturbed):
        raise Error(f"{undisturbed} holds no checkpoint: does {module} call mnist.train.launch? See {undisturbed}.log.")
    duration = time.monotonic() - began
    print(f"undisturbed: step {newest_step(undisturbed)} after {duration:.0f} s", flush=True)
    print(f"{'kill':>5} {'moment':<10}{'seconds':>8}{'step saved':>12}", flush=True)
    draw = random.Random(seed)
    rounds = 1
    for kill in range(1, kills + 1):
        moment = MOMENTS[kill % len(MOMENTS)]
        # A start-up takes some seconds; a life that ends before the first save makes no progress.
        seconds = draw.uniform(0, 4 if moment == "start-up" else max(10, 0.6 * duration))
        process = start(program, killed, arguments)
        if not kill_at(process, killed, moment, seconds):
            if process.returncode:
                raise failure("a resumed run", killed)
            different = differences(undisturbed, killed)
            if different:
                return different
            shutil.rmtree(killed)  # finished before all kills were spent: once more from the start
            rounds += 1
            moment = "finished"
        print(f"{kill:5d} {moment:<10}{seconds:8.1f}{newest_step(killed):12d}", flush=True)
    if start(program, killed, arguments).wait():
        raise failure("the last run", killed)
    print(f"finished: step {newest_step(killed)}, {rounds} run(s)", flush=True)
    return differences(undisturbed, killed)


class Torture:
    """What is killed, and how often."""

    workdir = Setting(None, "Folder for both runs, a new one.", kind=local_path)
    kills = Setting(20, "How often to kill the run.", low=1)
    seed = Setting(0, "Of the moments.", low=0)
    module = Setting("mnist.train", "What to run: a module, or a .py file, that calls mnist.train.launch.")


def main(options, arguments):
    if not options.workdir:
        raise Error("--workdir is missing: name a new folder, as in --workdir=runs/torture.")
    if os.path.exists(options.workdir):
        raise Error(f"--workdir={options.workdir} exists already: name a new folder.")
    arguments = [*DEFAULT_FLAGS, *arguments]
    different = torture(options.workdir, arguments, kills=options.kills, seed=options.seed, module=options.module)
    print(f"DIFFERENT: {', '.join(different)}" if different else "equal to the last bit: weights, optimizer, metrics")
    return 1 if different else 0


if __name__ == "__main__":
    run(main, Torture, arguments=True)
