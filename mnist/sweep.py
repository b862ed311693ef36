r"""Runs a training program for every setting of a grid and several seeds, and tabulates a metric by setting.

    python -m mnist.sweep --module=mnist.research.ema --seeds=10 --grid='decay=0.99,0.999;learning_rate=1e-3,3e-3' \
        --workdir=W --jobs=2 -- --epochs=5

--module=my_idea.py runs a file. Every run gets the flags after `--`. The same command resumes a stopped sweep, and adds
values, seeds or epochs. After an edit of the file (not of what it imports) or of a --flagfile its runs are unfinished.

W/SETTING/seed=N/ is the folder of a run, with its sweep.flags and log.txt. W/table.txt and W/table.csv hold a row for
each setting, the best first: mean, standard deviation, 95 % interval of the mean (Student's t). W/runs.csv holds every
results.json. A row of TensorBoard's HParams tab is a run, and its name lists all flags that differ from their defaults.

To choose a setting, do not use the test set: `--metric=validation_accuracy -- --holdout=10000`. Any number of
results.json is a metric. By the end of its name, the highest accuracy is the best, and the lowest loss, error or
seconds. Any other name follows min: or max:, as in --metric=max:test_f1.

The jobs share the cores. The number of threads, and so --jobs, changes the last bits of a result, and a stopped run
cannot resume with another number. With --jobs=0 a scheduler does the runs: the sweep writes their flags, and tabulates
the results that exist. With Slurm, for 40 runs:

    sbatch --array=1-40 --wrap 'f=$(find W -name sweep.flags | sort | sed -n ${SLURM_ARRAY_TASK_ID}p);
        python -m MODULE --flagfile="$f" --workdir="${f%/*}"'

For a file: `python FILE` in place of `python -m MODULE`, as in the first line of each sweep.flags.
"""

import contextlib
import csv
import errno
import hashlib
import io
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
from mnist.cli import Interrupt, check_arguments, check_flags, find_program, flagfile, last_words, say
from mnist.cli import run as run_command
from mnist.machine import num_cores
from mnist.metrics import is_lower_better
from mnist.metrics import seeds as over_seeds
from mnist.settings import Setting, local_path

_DIGEST = " has SHA-256 "
# The metrics of an evaluation, which a step may add to, and the other numbers of results.json.
_METRIC = r"(?:best_)?(?:train|validation|test)_\S+"
_NUMBERS = ("parameters", "seed", "epochs", "steps", "batch_size", "train_seconds", "images_per_second", "cores")
_THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")  # OMP: NumPy


class Run(typing.NamedTuple):
    """One run of a sweep: name and flags (a dict of strings) of its setting, seed, folder, text of its sweep.flags."""

    name: str
    setting: dict
    seed: int
    workdir: str
    flags: str

    def has_flags(self):
        """Returns whether the folder holds these flags."""
        with contextlib.suppress(OSError), open(os.path.join(self.workdir, "sweep.flags"), errors="replace") as file:
            return file.read() == self.flags
        return False

    def results(self):
        """Returns the content of results.json, None if it is damaged or no run with these flags has finished."""
        with contextlib.suppress(OSError, Error):
            if self.has_flags() and over_seeds.is_finished(self.workdir):
                return over_seeds.read_results(self.workdir)
        return None


def _print(text):
    """Prints text at once. Ignores a full disk. Raises: BrokenPipeError if the reader of stdout has left."""
    if not say(text):
        print(f"stopped. To resume: {_command()}", file=sys.stderr)
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _command():
    return f"{flagfile.command()} {shlex.join(sys.argv[1:])}"


def parse_grid(text):
    """Parses `rho=0.02,0.05;names="a,b",c`. Returns: a dict from flags to lists of values, all strings."""
    grid = {}
    for part in re.split(r';(?=(?:[^"]*"[^"]*")*[^"]*$)', text) if text else []:  # splits outside of quotes
        name, _, values = part.strip().partition("=")
        try:
            ((*values,),) = csv.reader([values], skipinitialspace=True, strict=True)
        except (csv.Error, ValueError):  # an open quote, a line break, an empty text
            values = []
        values = [value.strip() for value in values]
        if not re.fullmatch(r"\w+", name) or not values or not all(len(value.splitlines()) == 1 for value in values):
            raise Error(f"--grid has {part!r}, expected NAME=VALUE,VALUE... and a ; between two flags.")
        if name in ("seed", "workdir", *grid) or len(set(values)) < len(values):
            raise Error(f"--grid has {part!r}: a flag or value twice, or a flag that the sweep sets.")
        grid[name] = values
    return grid


def parse_metric(text):
    """Parses the metric `test_loss` or `max:test_f1`. Returns: its name, and whether its lowest value is the best.

    Raises: `mnist.Error` for a name that no results.json has, and for an unknown one without min: or max:.
    """
    order, name = re.fullmatch("(min:|max:)?(.*)", text, re.DOTALL).groups()
    if not re.fullmatch(_METRIC, name) and name not in _NUMBERS:
        raise Error(f"--metric={text}: results.json has test_..., validation_..., train_... and {', '.join(_NUMBERS)}.")
    lowest = is_lower_better(name) if order is None else order == "min:"
    if lowest is None:
        raise Error(f"--metric={text}: is a low or a high {name} better? Give --metric=min:{name} or max:{name}.")
    return name, lowest


def make_runs(workdir, grid, seeds, program, arguments):
    """Returns all `Run`s, seed by seed, so that a stopped sweep has equally many seeds of each setting."""
    runs = []
    first = f"# python {shlex.join(program)} --flagfile=<this file> --workdir=<its folder>"
    for seed, values in itertools.product(range(seeds), itertools.product(*grid.values())):
        setting = dict(zip(grid, values, strict=True))
        name = ",".join(f"{flag}={value}" for flag, value in setting.items()) or "default"
        # Quotes, because a slash or a comma in a value would make other folders or settings.
        folder = ",".join(f"{flag}={urllib.parse.quote(value, safe='=+')}" for flag, value in setting.items())
        lines = [*arguments, *(f"--{flag}={value}" for flag, value in setting.items())]
        flagfiles = [line.partition("=")[2] for line in lines if re.match("--?flagfile=", line)]
        lines += [f"--seed={seed}", *map(_digest, program[-1:] * (program[0] != "-m") + flagfiles)]
        folder = os.path.join(workdir, folder or name, f"seed={seed}")
        runs.append(Run(name, setting, seed, folder, "\n".join([first, *lines, ""])))
    return runs


def _digest(path):
    """Returns a comment for sweep.flags with the digest of a file, so that its runs are unfinished after an edit."""
    try:
        with open(path, "rb") as file:
            return f"# {path}{_DIGEST}{hashlib.sha256(file.read()).hexdigest()}"
    except OSError as error:
        raise Error(f"cannot read {path}: {error.strerror}.") from None


def _check_unedited(run):
    for line in run.flags.splitlines():
        path, digest, _ = line.removeprefix("# ").partition(_DIGEST)
        if digest and _digest(path) != line:
            raise Error(f"{path} was edited while the sweep ran: the same command starts again with the edited file.")


def _write_flags(run):
    path = os.path.join(run.workdir, "sweep.flags")
    with files.write_errors(f"write {path}"):
        os.makedirs(run.workdir, exist_ok=True)
        if not run.has_flags():  # results that are older than this file do not count
            files.write_atomically(path, run.flags)


def start(run, program, jobs):
    """Starts a run on its share of the cores, with its output in log.txt. Returns: the process."""
    environment = os.environ | dict.fromkeys(_THREADS, str(max(1, num_cores() // jobs)))
    command = [sys.executable, *program, f"--flagfile={run.workdir}/sweep.flags", f"--workdir={run.workdir}"]
    with open(os.path.join(run.workdir, "log.txt"), "a") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _outcome(run, returncode, results, metric):
    """Returns the outcome of a run in words."""
    if results:
        value = over_seeds.metric_of(results, metric)
        number = "-" if value is None else f"{value:.2f} %" if over_seeds.is_percent(metric) else f"{value:.5g}"
        return f"{metric.replace('_', ' ')} {number}"
    with open(os.path.join(run.workdir, "log.txt"), errors="replace") as file:
        reason = last_words(file.read())
    return f"FAILED with exit code {returncode}: {reason}, see {run.workdir}/log.txt"


def _run_all(runs, program, jobs, metric, interrupt, say):
    """Runs the unfinished runs, `jobs` at a time. Returns: the number of failures."""
    finished = {run.workdir: results for run in runs if (results := run.results())}
    waiting = [run for run in runs if run.workdir not in finished]
    running, failed, done, began = {}, 0, 0, time.monotonic()
    if finished:
        say(f"{len(finished)} of {len(runs)} runs are finished already")
    try:
        while (waiting or running) and not interrupt.signum:
            if message := over_seeds.missing_metric(metric, list(finished.values())):
                raise Error(f"{message}\nThe same command with another --metric resumes the sweep.")
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                _check_unedited(run)
                running[start(run, program, jobs)] = run
            time.sleep(0.1)
            for process in [process for process in running if process.poll() is not None]:
                if interrupt.signum:  # the run received the signal, too
                    break
                run = running.pop(process)
                if results := None if process.returncode else run.results():
                    finished[run.workdir] = results
                failed += not results
                done, left = done + 1, len(waiting) + len(running)
                minutes, seconds = divmod(round((time.monotonic() - began) / done * left), 60)
                outcome = f"{_outcome(run, process.returncode, results, metric)}, {minutes}:{seconds:02} left"
                say(f"[{len(runs) - left}/{len(runs)}] {run.name} seed={run.seed}: {outcome}")
    finally:
        for process in running:
            process.terminate()  # a run saves, then ends
        for process in running:
            process.wait()
    return failed


def _write_csv(path, rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_atomically(path, text.getvalue())


def sweep(workdir, *, module="mnist.train", grid="", seeds=5, jobs=1, arguments=(), metric="test_accuracy", say=_print):
    """Runs all unfinished runs, writes the tables and prints one. The arguments are the values of the flags.

    Returns: the exit code, which is 0, 1 if a run failed, or 128 + N after signal N. Raises: `mnist.Error`.
    """
    grid, program, (metric, lowest) = parse_grid(grid), find_program(module), parse_metric(metric)
    check_arguments(arguments, ("seed", "workdir", *grid))
    if flagfile.holds_run(workdir):
        raise Error(f"--workdir={workdir} is the folder of a run: name the folder of a sweep, or a new one.")
    runs = make_runs(workdir, grid, seeds, program, arguments)
    if not all(run.results() for run in runs):
        values = [f"--{name}={value}" for name, values in grid.items() for value in values]
        check_flags(program, arguments, [*values, "--seed=0"])
    with files.lock(workdir), Interrupt() as interrupt:
        for run in runs:
            _write_flags(run)
        failed = _run_all(runs, program, jobs, metric, interrupt, say) if jobs else 0
        finished = [(run, results) for run in runs if (results := run.results())]
        if interrupt.signum:
            say(f"stopped; {len(finished)} of {len(runs)} runs are finished. To resume: {_command()}")
            return 128 + interrupt.signum
        cells = [{"setting": run.name, **run.setting, "seed": run.seed, **results} for run, results in finished]
        _write_csv(os.path.join(workdir, "runs.csv"), cells)
        if message := over_seeds.missing_metric(metric, [results for _, results in finished]):
            raise Error(message)
        settings = {run.name: [] for run in runs}
        for run, results in finished:
            settings[run.name].append(results)
        rows = over_seeds.summarize(settings, metric)
        table = over_seeds.format_summary(rows, metric, lowest)
        files.write_atomically(os.path.join(workdir, "table.txt"), table)
        _write_csv(os.path.join(workdir, "table.csv"), rows)
    say(f"\n{table}" + (f"\n{failed} of {len(runs)} runs FAILED" if failed else ""))
    return 1 if failed else 0


class Sweep:
    """The flags of this command."""

    workdir = Setting(None, "Folder of the sweep.", kind=local_path)
    module = Setting("mnist.train", "A module, or a .py file, that calls mnist.train.launch.")
    grid = Setting("", 'Flags of the module, in every combination: NAME=VALUE,VALUE;NAME="a,b",c has two values each.')
    seeds = Setting(5, "Number of seeds, which are 0, 1, 2...", low=1)
    jobs = Setting(1, "Number of runs at a time. 0: only write flags, and tabulate what is finished.", low=0)
    metric = Setting(
        "test_accuracy", "Metric to tabulate, any number of results.json, with min: or max: before a name of your own."
    )


def main(options, arguments):
    if not options.workdir:
        raise Error("--workdir is missing: name the folder of the sweep, as in --workdir=runs/sweep.")
    return sweep(**vars(options), arguments=arguments)


if __name__ == "__main__":
    run_command(main, Sweep, arguments=True)
