r"""Runs a module for every setting of a grid and several seeds, and tells how good each setting is.

    python scripts/sweep.py --module=mnist.research.ema --seeds=10 --grid='decay=0.99,0.999;learning_rate=1e-3,3e-3' \
        --workdir=W --jobs=2 -- --epochs=5

What follows `--` goes to every run. A finished run is not run again: after Ctrl-C or a crash the same
command resumes; more values, seeds or epochs add to what is there. W/SETTING/seed=N/ is a run each, with
its sweep.flags and log.txt; W/table.txt and W/table.csv tell of each setting mean and standard deviation
over the seeds and the 95 % interval of the mean (Student's t), the best first; W/runs.csv has every run's
results.json.
In TensorBoard's HParams tab a setting is a session group, its seeds are the sessions, metrics are means.
To choose a setting, leave the test set alone: `--metric=validation_accuracy -- --holdout=10000`.

The cores are shared out over the jobs. The last bits of a result depend on the number of threads, and
so on --jobs; a run that was stopped is not resumed with another number. Any scheduler can do the runs:
--jobs=0 writes their flags and gathers the results that are there. With Slurm, for 40 runs:

    sbatch --array=1-40 --wrap 'f=$(find W -name sweep.flags | sort | sed -n ${SLURM_ARRAY_TASK_ID}p);
        python -m MODULE --flagfile="$f" --workdir="${f%/*}"'
"""

import contextlib
import csv
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import typing
import urllib.parse

from mnist import Error, files
from mnist.command import run as run_command
from mnist.fingerprint import num_cores
from mnist.interrupt import Interrupt
from mnist.settings import Setting, local_path

import tensorflow as tf
from compare import describe
from tensorboard.plugins.hparams import api as hp

METRICS = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")


class Run(typing.NamedTuple):
    """A run of a sweep: its setting by name and as flags (strings), its seed, its folder."""

    name: str
    setting: dict
    seed: int
    workdir: str

    def read_results(self):
        """Returns the content of results.json, None if the run with these flags is not finished."""
        path, flagfile = (os.path.join(self.workdir, name) for name in ("results.json", "sweep.flags"))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.stat(path).st_mtime_ns >= os.stat(flagfile).st_mtime_ns:
                with open(path) as file:
                    return json.load(file)
        return None


def say(text):
    """Prints at once, also into a file."""
    print(text, flush=True)


def parse_grid(text):
    """Parses `rho=0.02,0.05;learning_rate=1e-3`. Returns: a dict from flags to lists of values, strings."""
    grid = {}
    for part in text.split(";") if text else []:
        name, _, values = part.strip().partition("=")
        values = [value.strip() for value in values.split(",")]
        if not re.fullmatch(r"\w+", name) or not all(values):
            raise Error(f"--grid has {part!r}, expected NAME=VALUE,VALUE... and a ; between two flags.")
        if name in ("seed", "workdir", *grid) or len(set(values)) < len(values):
            raise Error(f"--grid has {part!r}: a flag or value twice, or a flag that the sweep sets.")
        grid[name] = values
    return grid


def make_runs(workdir, grid, seeds):
    """Returns all runs, seed by seed: a sweep that is stopped has as many of each setting."""
    runs = []
    for seed, values in itertools.product(range(seeds), itertools.product(*grid.values())):
        setting = dict(zip(grid, values, strict=True))
        name = ",".join(f"{flag}={value}" for flag, value in setting.items()) or "default"
        folder = urllib.parse.quote(name, safe="=,+")  # a path as a value stays one folder
        runs.append(Run(name, setting, seed, os.path.join(workdir, folder, f"seed={seed}")))
    return runs


def check_command(module, arguments, grid):
    """Raises `mnist.Error` for a module that is missing and for arguments that a sweep cannot pass on."""
    found = None
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(module)
    if not found:
        raise Error(f"--module={module}: there is no such module to import.")
    for argument in arguments:
        flag = re.fullmatch(r"--?(\w+)(=.*)?", argument)
        if not flag or flag[1] in ("seed", "workdir", *grid):
            raise Error(f"{argument!r} {'is set by the sweep' if flag else 'is not of the form --name=value'}.")


def check_flags(module, arguments, grid):
    """Raises `mnist.Error` if the module does not take one of the flags, or a flag one of its values."""
    values = [f"--{name}={value}" for name, values in grid.items() for value in values]
    command = [sys.executable, "-m", module, *arguments, *values, "--seed=0", "--only_check_args"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ")
        raise Error(f"{module} cannot be run with these flags: {said}")


def write_flagfile(run, module, arguments):
    """Writes a run's sweep.flags, unless it is there already."""
    own = [f"--{flag}={value}" for flag, value in [*run.setting.items(), ("seed", run.seed)]]
    for argument in arguments:
        name, _, flagfile = argument.partition("=")
        if name.lstrip("-") == "flagfile":  # one that is edited has its runs count as unfinished
            try:
                with open(flagfile, "rb") as file:
                    own.append(f"# {flagfile} has SHA-256 {hashlib.sha256(file.read()).hexdigest()}")
            except OSError as error:
                raise Error(f"cannot read {argument}: {error.strerror}.") from None
    text = "\n".join([f"# python -m {module} --flagfile=<this file> --workdir=<its folder>", *arguments, *own, ""])
    path, old = os.path.join(run.workdir, "sweep.flags"), None
    with files.write_errors(f"write {path}"):
        os.makedirs(run.workdir, exist_ok=True)
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            old = file.read()
        if text != old:  # results of other flags, which are older than this file, do not count
            files.write_atomically(path, text)


def start(run, module, jobs):
    """Starts a run with its share of the cores, its output in log.txt. Returns: the process."""
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")  # the last: NumPy's
    environment = os.environ | dict.fromkeys(names, str(max(1, num_cores() // jobs)))
    flagfile = os.path.join(run.workdir, "sweep.flags")
    command = [sys.executable, "-m", module, f"--flagfile={flagfile}", f"--workdir={run.workdir}"]
    with open(os.path.join(run.workdir, "log.txt"), "a") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def last_words(run):
    """The last line of a run's log."""
    with open(os.path.join(run.workdir, "log.txt"), errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()]
    return lines[-1] if lines else "it said nothing"


def run_all(runs, module, jobs, metric, interrupt, say):
    """Runs what is not finished, `jobs` at a time. Returns: how many failed."""
    waiting = [run for run in runs if not run.read_results()]
    running, failed, done, began = {}, 0, 0, time.monotonic()
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    try:
        while (waiting or running) and not interrupt.signum:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[start(run, module, jobs)] = run
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                if interrupt.signum:  # it came to the run as well
                    break
                run = running.pop(process)
                results = None if process.returncode else run.read_results()
                if results:
                    write_hparams(run, module)
                    said = f"{metric.replace('_', ' ')} {100 * results[metric]:.2f} %"
                else:
                    failed += 1
                    said = f"FAILED with exit code {process.returncode}: {last_words(run)}, see {run.workdir}/log.txt"
                done, left = done + 1, len(waiting) + len(running)
                minutes, seconds = divmod(round((time.monotonic() - began) / done * left), 60)
                position = f"[{len(runs) - left}/{len(runs)}] {run.name} seed={run.seed}"
                say(f"{position}: {said}, {minutes}:{seconds:02} left")
    finally:
        for process in running:
            process.terminate()  # a run saves and ends
        for process in running:
            process.wait()
    return failed


def write_hparams(run, module):
    """Writes what TensorBoard's HParams tab shows of a finished run; the tab finds names and ranges itself."""
    folder, results = os.path.join(run.workdir, "hparams"), run.read_results()
    shutil.rmtree(folder, ignore_errors=True)
    hparams = {"module": module, **run.setting}
    for flag, value in run.setting.items():
        with contextlib.suppress(ValueError):
            hparams[flag] = float(value)
    with files.write_errors(f"write {folder}"):
        writer = tf.summary.create_file_writer(folder)
        with contextlib.closing(writer), writer.as_default(step=results["steps"]):
            hp.hparams(hparams, trial_id=os.path.dirname(run.workdir))
            for metric in METRICS:
                tf.summary.scalar(metric, results[metric])


def summarize(runs, metric):
    """Returns a dict for each setting, numbers in percent but for n and the median seconds of training.

    NaN where there are too few runs for a number.
    """
    rows = []
    for name in dict.fromkeys(run.name for run in runs):
        finished = [results for run in runs if run.name == name and (results := run.read_results())]
        if len(datasets := sorted({results["dataset"] for results in finished})) > 1:
            raise Error(
                f"{name} mixes runs on {' and '.join(datasets)}: name one with -- --dataset=NAME or --data_dir."
            )
        n, *numbers = describe([100 * results[metric] for results in finished])
        seconds = statistics.median([results["train_seconds"] for results in finished] or [math.nan])
        names = [f"{metric}_{key}_percent" for key in ("mean", "std", "low", "high")]
        percent = dict(zip(names, numbers, strict=True))
        rows.append({"setting": name, "n": n, **percent, "train_seconds_median": seconds})
    return rows


def format_table(rows, metric):
    """The rows of `summarize` as text, the best mean first and marked with a star; without a result, last."""
    means = {row["setting"]: row[f"{metric}_mean_percent"] for row in rows}
    rows = sorted(rows, key=lambda row: -math.inf if math.isnan(mean := means[row["setting"]]) else mean, reverse=True)
    width = max(len(row["setting"]) for row in rows) + 2
    title = f"{metric.replace('_', ' ')}, %"
    text = f"{'setting':<{width}}{'n':>5}{title:>24}{'95 % interval':>20}{'training, s':>14}\n"
    for name, n, mean, std, low, high, seconds in (row.values() for row in rows):
        spread, interval = f"{mean:.3f} ± {std:.3f}", f"{low:.3f} .. {high:.3f}"
        mark = " *" if len(rows) > 1 and mean == means[rows[0]["setting"]] else ""
        text += f"{name + mark:<{width}}{n:5}{spread:>24}{interval:>20}{seconds:14.1f}\n"
    return text


def write_csv(path, rows):
    """Writes a list of dicts; the columns are all their keys."""
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomically(path, text.getvalue())


def sweep(workdir, *, module="mnist.train", grid="", seeds=5, jobs=1, arguments=(), metric=METRICS[0], say=say):
    """Does all runs that are not finished, writes and says the table. Arguments: as the flags.

    Returns: the exit code: 0, 1 if a run failed, 128 + its number if a signal came.
    Raises: `mnist.Error`.
    """
    grid = parse_grid(grid)
    check_command(module, arguments, grid)
    if seeds < 1:
        raise Error(f"--seeds={seeds}: expected at least 1, which is seed 0.")
    runs = make_runs(workdir, grid, seeds)
    if any(not run.read_results() for run in runs):
        check_flags(module, arguments, grid)
    with files.lock(workdir), Interrupt() as interrupt:
        for run in runs:
            write_flagfile(run, module, arguments)
            if run.read_results():
                write_hparams(run, module)
        failed = run_all(runs, module, jobs, metric, interrupt, say) if jobs else 0
        finished = [(run, results) for run in runs if (results := run.read_results())]
        if interrupt.signum:
            command = shlex.join(["python", *sys.argv])
            say(f"stopped; {len(finished)} of {len(runs)} runs are finished. To resume: {command}")
            return 128 + interrupt.signum
        rows = summarize(runs, metric)
        files.write_atomically(os.path.join(workdir, "table.txt"), format_table(rows, metric))
        write_csv(os.path.join(workdir, "table.csv"), rows)
        rows_of_runs = [{"setting": run.name, **run.setting, "seed": run.seed, **results} for run, results in finished]
        write_csv(os.path.join(workdir, "runs.csv"), rows_of_runs)
    say(f"\n{format_table(rows, metric)}" + (f"\n{failed} of {len(runs)} runs FAILED" if failed else ""))
    return 1 if failed else 0


class Sweep:
    """What is run."""

    workdir = Setting(None, "Folder of the sweep.", kind=local_path)
    module = Setting("mnist.train", "What to run: any module that calls mnist.train.launch.")
    grid = Setting("", "NAME=VALUE,VALUE;NAME=VALUE...: flags of the module, in every combination.")
    seeds = Setting(5, "How many seeds: 0, 1, 2...", low=1)
    jobs = Setting(1, "Runs at a time. 0: only write flags and gather what is finished.", low=0)
    metric = Setting(METRICS[0], "What to tabulate.", kind=("test_accuracy", "validation_accuracy"))


def main(options, arguments):
    if not options.workdir:
        raise Error("--workdir is missing: name the folder of the sweep, as in --workdir=runs/sweep.")
    sys.path.insert(0, "")  # as `python -m` does: a module in this folder counts
    return sweep(**vars(options), arguments=arguments)


if __name__ == "__main__":
    run_command(main, Sweep, arguments=True)
