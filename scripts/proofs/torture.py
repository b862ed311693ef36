"""Kills a run again and again, and checks that nothing is lost: python scripts/proofs/torture.py --workdir=W --kills=20

Trains once undisturbed in W/undisturbed. Trains again in W/killed with `kill -9` at random moments: anywhere, during
start-up, and as soon as a save begins. Then it compares the last checkpoint, every variable, the metrics of every epoch
and results.json, except times. Exits with 0 only if all are equal to the last bit. The flags after `--` go to
python -m mnist.train, or to --module.

    python scripts/proofs/torture.py --workers=2 --kills=20 --workdir=W

trains the killed run with several processes. Each start has 1, 2, 4 ... or --workers processes with one or two devices.
The undisturbed run is one process. The victim is a random process, which is killed or sometimes stopped. The others
must end by themselves within 30 s, with exit code 75 and one line that begins with `error: `.
"""

import collections
import contextlib
import glob
import json
import os
import random
import re
import shutil
import signal
import statistics
import sys
import time

from mnist import LOST, Error, checkpoint, files
from mnist.cli import check_arguments, find_program, last_words, run
from mnist.launch_workers import Workers
from mnist.run import OF_THE_HOUR
from mnist.settings import Setting, local_path

# Small batches in evaluations, and many saves, make both long enough for a kill to hit them.
DEFAULT_FLAGS = ["--epochs=2", "--checkpoint_every=100"]
EVAL_BATCH_SIZES = (2, 8)  # for one process, for several: a worker answers no other worker while it evaluates
MOMENTS = ("anywhere", "save", "start-up")
START_UP = 4  # seconds for each worker, because they share the cores
LIMIT = 30  # seconds for the other workers to end, from the loss or from the end of the start-up
WORKER_TIMEOUT = 24  # seconds. Workers wait so long for a start-up, and a third of it for an answer
STOPPED = 0.2  # share of the victims that are stopped
# The first words of a line in which C++ or Python reports a failure.
REPORT = r"Traceback |Fatal |terminate called|\*\*\* |\s+@ |[IWEF]\d{4} |\d{4}-\d\d-\d\d \d\d:"


def log_of(workdir, worker=0):
    return f"{workdir}.{worker}.log" if worker else f"{workdir}.log"


def start(program, workdir, arguments, count=1):
    """Starts a run, with the output of its workers in W.log, W.1.log and so on. Returns: the `Workers`."""
    logs = [log_of(workdir, worker) for worker in range(count)]
    for log in logs:
        with contextlib.suppress(FileNotFoundError):
            os.remove(log)
    return Workers([sys.executable, *program, f"--workdir={workdir}", *arguments], logs)


def wait(workers, what, workdir):
    """Waits for the end of a run. Raises: `mnist.Error` if it failed."""
    failed = workers.follow([])
    workers.end()
    if failed is not None:
        raise failure(what, workdir, failed)


def failure(what, workdir, worker=0):
    """Returns an `Error` with the last words of a run that failed."""
    log = log_of(workdir, worker)
    with open(log, errors="replace") as file:
        message = last_words(file.read()).removeprefix("error: ")
    if os.path.exists(workdir):
        return Error(f"{what} failed: {message} See {log}.")
    os.remove(log)  # the run wrote nothing, so that the same --workdir can be used again
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(workdir))
    return Error(f"{what} failed: {message}")


def newest_step(workdir):
    """Returns the step of the newest checkpoint, 0 if no checkpoint exists."""
    paths = glob.glob(os.path.join(glob.escape(workdir), "checkpoints", "ckpt-*.index"))
    return max((int(path.rpartition("-")[2].removesuffix(".index")) for path in paths), default=0)


def signal_at(process, signum, workdir, moment, seconds):
    """Sends a signal to a process after some seconds. For the moment "save" it then waits for the next save.

    Returns: whether the process had not ended.
    """
    pattern = os.path.join(glob.escape(workdir), "checkpoints", "tmp*")
    left = set(glob.glob(pattern))  # from a killed save
    time.sleep(seconds)
    while moment == "save" and process.poll() is None and left.issuperset(glob.glob(pattern)):
        pass
    alive = process.poll() is None
    process.send_signal(signum)
    return alive


def outlive(workers, victim, workdir, limit):
    """Waits until all workers except the victim have ended, and kills the victim. Returns: the seconds waited.

    Raises: `mnist.Error` if a worker takes more than `limit` seconds, or ends with another code or more output.
    """
    others = {i: process for i, process in enumerate(workers.processes) if i != victim}
    began = time.monotonic()
    while (left := [i for i in others if others[i].poll() is None]) and time.monotonic() < began + limit:
        time.sleep(0.05)
    seconds = time.monotonic() - began
    workers.send(signal.SIGKILL)
    workers.wait(LIMIT)
    if left:
        raise Error(f"worker {left[0]} did not end within {limit:.0f} s. See {log_of(workdir, left[0])}.")
    for i, process in others.items():
        with open(log_of(workdir, i), errors="replace") as file:
            text = file.read().rstrip()
        if process.returncode == 0 and os.path.exists(os.path.join(workdir, "results.json")):
            continue  # the run was finished
        reports = re.findall(rf"^(?:error: |{REPORT}).*", text, re.MULTILINE)
        if process.returncode != LOST or reports != text.splitlines()[-1:]:
            code = f"exit code {process.returncode}, expected {LOST} and one line of error"
            raise Error(f"worker {i} did not end as it should: {code}. See {log_of(workdir, i)}.")
    return seconds


def differences(one, other):
    """Compares two finished runs except for times. Returns: the names of all differences."""
    loaded = [checkpoint.load_newest(os.path.join(workdir, "checkpoints")) for workdir in (one, other)]
    (tensors, state), (other_tensors, other_state) = loaded
    names = [n for n in tensors.keys() | other_tensors.keys() if not _equal(tensors.get(n), other_tensors.get(n))]
    names += [n for n in state if n not in {"seconds", "times", "provenance"} and state[n] != other_state.get(n)]
    results = []
    for workdir in (one, other):
        with open(os.path.join(workdir, "results.json")) as file:
            results.append(json.load(file))
    names += [n for n in results[0].keys() - OF_THE_HOUR if results[0][n] != results[1].get(n)]
    return sorted(names)


def _equal(a, b):
    return a is not None and b is not None and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def torture(workdir, arguments, *, kills, seed, workers=1, module="mnist.train"):
    """Trains undisturbed and killed. Returns: the names of all differences."""
    undisturbed, killed = os.path.join(workdir, "undisturbed"), os.path.join(workdir, "killed")
    program = find_program(module)
    check_arguments(arguments, ["workdir", *(["slices", "devices", "worker_timeout"] if workers > 1 else [])])
    counts, layouts = [1 << i for i in range(workers.bit_length())], collections.Counter()
    if workers > 1:
        arguments = [*arguments, f"--slices={2 * counts[-1]}", f"--worker_timeout={WORKER_TIMEOUT}"]
    with files.write_errors(f"write {workdir}"):
        os.makedirs(workdir, exist_ok=True)
    began = time.monotonic()
    wait(start(program, undisturbed, arguments), "the undisturbed run", undisturbed)
    if not newest_step(undisturbed):
        raise Error(f"{undisturbed} holds no checkpoint: does {module} call mnist.train.launch? See {undisturbed}.log.")
    duration = time.monotonic() - began
    print(f"undisturbed: step {newest_step(undisturbed)} after {duration:.0f} s", flush=True)
    print(f"{'kill':>5} {'moment':<10}{'seconds':>8}{'step saved':>12}", flush=True)
    draw, rounds, kill, waited = random.Random(seed), 1, 1, []

    def resume():
        """Starts the killed run on a random layout. Returns: the `Workers`, the layout in words."""
        if workers == 1:
            return start(program, killed, arguments), ""
        count, devices = draw.choice(counts), draw.choice([1, 2])
        layouts[layout := f"{count} x {devices}"] += 1
        return start(program, killed, [*arguments, f"--devices={devices}"], count), layout

    while kill <= kills:
        moment = MOMENTS[kill % len(MOMENTS)]
        life, layout = resume()
        victim, signum, count = 0, signal.SIGKILL, len(life.processes)
        if count > 1:
            victim = draw.randrange(count)
            signum = signal.SIGSTOP if draw.random() < STOPPED else signum
        # Long enough on average to reach a save, without which there is no progress.
        start_up = START_UP * count
        seconds = draw.uniform(0, start_up if moment == "start-up" else max(10, 0.6 * duration))
        if signal_at(life.processes[victim], signum, killed, moment, seconds):
            if count > 1:
                waited.append(outlive(life, victim, killed, LIMIT + max(0, start_up - seconds)))
                layout += f"  {signum.name} to worker {victim}, the others ended after {waited[-1]:.1f} s"
            life.wait(LIMIT)
            print(f"{kill:5d} {moment:<10}{seconds:8.1f}{newest_step(killed):12d}  {layout}".rstrip(), flush=True)
            kill += 1
            continue
        wait(life, "a resumed run", killed)
        print(f"{'':>5} {'finished':<10}{seconds:8.1f}{newest_step(killed):12d}  {layout}".rstrip(), flush=True)
        if different := differences(undisturbed, killed):
            return different
        shutil.rmtree(killed)  # starts again, because kills are left
        rounds += 1
    wait(resume()[0], "the last run", killed)
    print(f"finished: step {newest_step(killed)}, {rounds} run(s)", flush=True)
    if workers > 1:
        starts = ", ".join(f"{number} on {layout}" for layout, number in sorted(layouts.items()))
        print(f"starts on workers x devices: {starts}", flush=True)
    if waited:
        print(f"the others ended after {statistics.median(waited):.1f} s, at most {max(waited):.1f} s", flush=True)
    return differences(undisturbed, killed)


class Torture:
    """The flags of this script."""

    workdir = Setting(None, "New folder for both runs.", kind=local_path)
    kills = Setting(20, "Number of kills.", low=1)
    workers = Setting(1, "Largest number of processes of the killed run. Every start has another number.", low=1)
    seed = Setting(0, "Seed of the moments.", low=0)
    module = Setting("mnist.train", "A module, or a .py file, that calls mnist.train.launch.")


def main(options, arguments):
    if not options.workdir:
        raise Error("--workdir is missing: name a new folder, as in --workdir=runs/torture.")
    if os.path.exists(options.workdir):
        raise Error(f"--workdir={options.workdir} exists already: name a new folder.")
    arguments = [*DEFAULT_FLAGS, f"--eval_batch_size={EVAL_BATCH_SIZES[options.workers > 1]}", *arguments]
    own = {name: getattr(options, name) for name in ("kills", "workers", "seed", "module")}
    different = torture(options.workdir, arguments, **own)
    print(f"DIFFERENT: {', '.join(different)}" if different else "0 bits differ: weights, optimizer, metrics")
    return 1 if different else 0


if __name__ == "__main__":
    run(main, Torture, arguments=True)
