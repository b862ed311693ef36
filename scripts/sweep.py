r"""Runs a module or a file for every setting of a grid and several seeds, and tells how good each setting is.

    python scripts/sweep.py --module=mnist.research.ema --seeds=10 --grid='decay=0.99,0.999;learning_rate=1e-3,3e-3' \
        --workdir=W --jobs=2 -- --epochs=5

--module=my_idea.py is a file. What follows `--` goes to every run. A finished run is not run again: after
Ctrl-C or a crash the same command resumes; more values, seeds or epochs add to what is there. Once the file or a
--flagfile is edited, all runs count as unfinished; what the file imports is not looked at. W/SETTING/seed=N/ is
a run each, with its sweep.flags and log.txt; W/table.txt and W/table.csv tell of each setting mean and
standard deviation over the seeds and the 95 % interval of the mean (Student's t), the best first; W/runs.csv has
every run's results.json.
In TensorBoard's HParams tab each run is a row, which says in its name what it has other than defaults.
To choose a setting, leave the test set alone: `--metric=validation_accuracy -- --holdout=10000`. Any number in
results.json is a metric; of a loss, an error or seconds, by the end of its name, the lowest is the best.

The cores are shared out over the jobs. The last bits of a result depend on the number of threads, and
so on --jobs; a run that was stopped is not resumed with another number. Any scheduler can do the runs:
--jobs=0 writes their flags and gathers the results that are there. With Slurm, for 40 runs:

    sbatch --array=1-40 --wrap 'f=$(find W -name sweep.flags | sort | sed -n ${SLURM_ARRAY_TASK_ID}p);
        python -m MODULE --flagfile="$f" --workdir="${f%/*}"'

with `python FILE` in place of `python -m MODULE` for a file, as the first line of each sweep.flags says.
"""

import contextlib
import csv
import errno
import hashlib
import itertools
import os
import re
import shlex
import subprocess
import sys
import time
import typing
import urllib.parse

from mnist import Error, files
from mnist.cli import Interrupt, progress
from mnist.cli import run as run_command
from mnist.machine import num_cores
from mnist.settings import Setting, local_path

from results import format_table, is_finished, is_percent, missing, read_results, summarize, value_of, write_csv

_DIGEST = " has SHA-256 "
METRICS = ("test_accuracy", "test_loss", "validation_accuracy", "validation_loss")


class Run(typing.NamedTuple):
    """A run of a sweep: its setting by name and as flags (strings), its seed, its folder, its sweep.flags."""

    name: str
    setting: dict
    seed: int
    workdir: str
    flags: str

    def has_flags(self):
        """Whether the folder holds these flags already."""
        with contextlib.suppress(OSError), open(os.path.join(self.workdir, "sweep.flags"), errors="replace") as file:
            return file.read() == self.flags
        return False

    def read_results(self):
        """Returns the content of results.json, None if the run with these flags is not finished or it is damaged."""
        with contextlib.suppress(OSError, Error):
            if self.has_flags() and is_finished(self.workdir):
                return read_results(self.workdir)
        return None


def say(text):
    """Prints at once, also into a file; goes on where that is full. Raises: BrokenPipeError if the reader has left."""
    if not progress.say(text):
        print(f"stopped. To resume: {shlex.join(['python', *sys.argv])}", file=sys.stderr)
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def parse_grid(text):
    """Parses `rho=0.02,0.05;names="a,b",c`. Returns: a dict from flags to lists of values, strings."""
    grid = {}
    for part in re.split(r';(?=(?:[^"]*"[^"]*")*[^"]*$)', text) if text else []:  # not within quotes
        name, _, values = part.strip().partition("=")
        try:
            ((*values,),) = csv.reader([values], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError):  # an open quote, a line break; nothing
            values = []
        values = [value.strip() for value in values]
        if not re.fullmatch(r"\w+", name) or not values or not all(len(value.splitlines()) == 1 for value in values):
            raise Error(f"--grid has {part!r}, expected NAME=VALUE,VALUE... and a ; between two flags.")
        if name in ("seed", "workdir", *grid) or len(set(values)) < len(values):
            raise Error(f"--grid has {part!r}: a flag or value twice, or a flag that the sweep sets.")
        grid[name] = values
    return grid


def make_runs(workdir, grid, seeds, program, arguments):
    """Returns all runs, seed by seed: a sweep that is stopped has as many of each setting."""
    runs = []
    first = f"# python {shlex.join(program)} --flagfile=<this file> --workdir=<its folder>"
    for seed, values in itertools.product(range(seeds), itertools.product(*grid.values())):
        setting = dict(zip(grid, values, strict=True))
        name = ",".join(f"{flag}={value}" for flag, value in setting.items()) or "default"
        # A path or several names as a value stay one folder.
        folder = ",".join(f"{flag}={urllib.parse.quote(value, safe='=+')}" for flag, value in setting.items())
        lines = [*arguments, *(f"--{flag}={value}" for flag, value in setting.items())]
        flagfiles = [line.partition("=")[2] for line in lines if re.match("--?flagfile=", line)]
        lines += [f"--seed={seed}", *map(_digest, program[-1:] * (program[0] != "-m") + flagfiles)]
        folder = os.path.join(workdir, folder or name, f"seed={seed}")
        runs.append(Run(name, setting, seed, folder, "\n".join([first, *lines, ""])))
    return runs


def _digest(path):
    """A comment on a file, the program or a --flagfile, that has its runs count as unfinished once it is edited."""
    try:
        with open(path, "rb") as file:
            return f"# {path}{_DIGEST}{hashlib.sha256(file.read()).hexdigest()}"
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}.") from None


def check_unedited(run):
    """Raises `mnist.Error` if a file that a run depends on is no longer the one of its sweep.flags."""
    for line in run.flags.splitlines():
        path, digest, _ = line.removeprefix("# ").partition(_DIGEST)
        if digest and _digest(path) != line:
            raise Error(f"{path} was edited while the sweep ran: the same command begins anew, with what it is now.")


def find_program(module):
    """Returns what Python is to run, a list, `-m` and a module's name or a file's path. Raises: `mnist.Error`.

    A module is not looked for: that would import its package, and a script's flags are not the sweep's.
    """
    if module.endswith(".py") or os.path.dirname(module):
        path = os.path.abspath(local_path(module))
        if not os.path.isfile(path):
            raise Error(f"--module={module}: there is no file {path}.")
        return [path]
    if not re.fullmatch(r"\w+(\.\w+)*", module):
        raise Error(f"--module={module!r} is no name of a module, as mnist.train, and no file, as my_idea.py.")
    return ["-m", module]


def check_arguments(arguments, own):
    """Raises `mnist.Error` for arguments that cannot be passed on, such as the flags `own`, set by the script."""
    for argument in arguments:
        flag = re.fullmatch(r"--?(\w+)(=.*)?", argument)
        if not flag or {flag[1], flag[1].removeprefix("no")} & {*own}:
            raise Error(f"{argument!r} {'is set by this script' if flag else 'is not of the form --name=value'}.")


def check_flags(program, arguments, grid):
    """Raises `mnist.Error` if there is no such module or it does not take one of the flags or of their values."""
    values = [f"--{name}={value}" for name, values in grid.items() for value in values]
    command = [sys.executable, *program, *arguments, *values, "--seed=0", "--only_check_args"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = last_words(done.stderr).removeprefix("error: ").removeprefix(f"{sys.executable}: ")
        raise Error(f"--module={program[-1]} does not start with these flags: {said}")


def write_flagfile(run):
    """Writes a run's sweep.flags unless it is there: results of other flags, which are older, do not count."""
    path = os.path.join(run.workdir, "sweep.flags")
    with files.write_errors(f"write {path}"):
        os.makedirs(run.workdir, exist_ok=True)
        if not run.has_flags():
            files.write_atomically(path, run.flags)


def start(run, program, jobs):
    """Starts a run with its share of the cores, its output in log.txt. Returns: the process."""
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")  # the last: NumPy's
    environment = os.environ | dict.fromkeys(names, str(max(1, num_cores() // jobs)))
    flagfile = os.path.join(run.workdir, "sweep.flags")
    command = [sys.executable, *program, f"--flagfile={flagfile}", f"--workdir={run.workdir}"]
    with open(os.path.join(run.workdir, "log.txt"), "a") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def last_words(text):
    """What a program said last: an error in its own words, which may have two lines, or a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()][-2:] or ["it said nothing"]
    return " ".join(lines) if lines[0].startswith("error: ") else lines[-1]


def run_all(runs, program, jobs, metric, interrupt, say):
    """Runs what is not finished, `jobs` at a time. Returns: how many failed."""
    waiting = [run for run in runs if not run.read_results()]
    running, failed, done, began = {}, 0, 0, time.monotonic()
    finished, unknown = [results for run in runs if (results := run.read_results())], None
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    try:
        while (waiting or running) and not interrupt.signum:
            if not unknown and (unknown := missing(metric, finished)):  # no reason to stop: the runs are the same
                say(f"{unknown} The runs go on; the same command with another --metric tabulates them.")
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                check_unedited(run)
                running[start(run, program, jobs)] = run
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                if interrupt.signum:  # it came to the run as well
                    break
                run = running.pop(process)
                results = None if process.returncode else run.read_results()
                if results:
                    finished.append(results)
                    value = value_of(results, metric)
                    unit = ".2f} %" if is_percent(metric) else ".5g}"
                    said = f"{metric.replace('_', ' ')} " + ("-" if value is None else f"{{:{unit}".format(value))
                else:
                    failed += 1
                    with open(os.path.join(run.workdir, "log.txt"), errors="replace") as file:
                        said = last_words(file.read())
                    if not process.returncode:
                        said += " (it wrote no results: does it call mnist.train.launch?)"
                    said = f"FAILED with exit code {process.returncode}: {said}, see {run.workdir}/log.txt"
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


def sweep(workdir, *, module="mnist.train", grid="", seeds=5, jobs=1, arguments=(), metric=METRICS[0], say=say):
    """Does all runs that are not finished, writes and says the table. Arguments: as the flags.

    Returns: the exit code: 0, 1 if a run failed, 128 + its number if a signal came.
    Raises: `mnist.Error`.
    """
    grid, program = parse_grid(grid), find_program(module)
    check_arguments(arguments, ("seed", "workdir", *grid))
    if seeds < 1:
        raise Error(f"--seeds={seeds}: expected at least 1, which is seed 0.")
    runs = make_runs(workdir, grid, seeds, program, arguments)
    if not all(run.read_results() for run in runs):
        check_flags(program, arguments, grid)
    elif unknown := missing(metric, [run.read_results() for run in runs]):
        raise Error(unknown)
    with files.lock(workdir), Interrupt() as interrupt:
        for run in runs:
            write_flagfile(run)
        failed = run_all(runs, program, jobs, metric, interrupt, say) if jobs else 0
        finished = [(run, results) for run in runs if (results := run.read_results())]
        if interrupt.signum:
            command = shlex.join(["python", *sys.argv])
            say(f"stopped; {len(finished)} of {len(runs)} runs are finished. To resume: {command}")
            return 128 + interrupt.signum
        rows_of_runs = [{"setting": run.name, **run.setting, "seed": run.seed, **results} for run, results in finished]
        write_csv(os.path.join(workdir, "runs.csv"), rows_of_runs)
        if unknown := missing(metric, [results for _, results in finished]):
            raise Error(unknown)
        rows = summarize(runs, metric)
        files.write_atomically(os.path.join(workdir, "table.txt"), format_table(rows, metric))
        write_csv(os.path.join(workdir, "table.csv"), rows)
    say(f"\n{format_table(rows, metric)}" + (f"\n{failed} of {len(runs)} runs FAILED" if failed else ""))
    return 1 if failed else 0


class Sweep:
    """What is run."""

    workdir = Setting(None, "Folder of the sweep.", kind=local_path)
    module = Setting("mnist.train", "What to run: a module, or a .py file, that calls mnist.train.launch.")
    grid = Setting(
        "",
        "NAME=VALUE,VALUE;NAME=VALUE...: flags of the module, in every combination. 'NAME=\"a,b\",c' has two values.",
    )
    seeds = Setting(5, "How many seeds: 0, 1, 2...", low=1)
    jobs = Setting(1, "Runs at a time. 0: only write flags and gather what is finished.", low=0)
    metric = Setting(METRICS[0], "What to tabulate: any number of results.json.")


def main(options, arguments):
    if not options.workdir:
        raise Error("--workdir is missing: name the folder of the sweep, as in --workdir=runs/sweep.")
    return sweep(**vars(options), arguments=arguments)


if __name__ == "__main__":
    run_command(main, Sweep, arguments=True)
