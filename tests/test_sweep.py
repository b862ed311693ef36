"""Sweeps of real runs, as TensorBoard and the tables show them, and the comparison of two settings."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request

from mnist import Error
from scripts import compare, sweep

import numpy as np
import pytest
import scipy.stats

SETTINGS = ("learning_rate=1e-3", "learning_rate=3e-3")
ARGUMENTS = ["--dataset=digits", "--max_steps=5"]


@pytest.fixture(scope="module", autouse=True)
def quick_start(python):
    """Has the sweeps of this file start their runs without the seconds that TensorFlow takes to import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", python)
        yield


def do_sweep(workdir, grid="learning_rate=1e-3,3e-3", **options):
    """Runs a sweep. Returns: its exit code and all that it said."""
    said = []
    options = {"seeds": 2, "jobs": 2, "arguments": ARGUMENTS, "say": said.append} | options
    code = sweep.sweep(str(workdir), grid=grid, **options)
    return code, "\n".join(said)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two settings and two seeds, with what it said."""
    workdir = tmp_path_factory.mktemp("finished") / "sweep"
    code, said = do_sweep(workdir)
    assert code == 0, said
    return workdir, said


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "sweep")


def read_results(workdir, setting):
    paths = [workdir / setting / f"seed={seed}" / "results.json" for seed in range(2)]
    return [json.loads(path.read_text()) for path in paths]


def test_each_run_has_its_flags_and_says_how_it_went(finished):
    workdir, said = finished
    lines = said.splitlines()
    for setting in SETTINGS:
        for seed, results in enumerate(read_results(workdir, setting)):
            flags = (workdir / setting / f"seed={seed}" / "flags.txt").read_text().splitlines()
            rate = float(setting.partition("=")[2])
            assert {f"--seed={seed}", f"--learning_rate={rate}", "--max_steps=5", "--dataset=digits"} <= set(flags)
            said_of_it = f"{setting} seed={seed}: test accuracy {100 * results['test_accuracy']:.2f} %, "
            assert sum(said_of_it in line for line in lines) == 1
    assert lines[3].startswith("[4/4] ")
    assert lines[3].endswith("0:00 left")


def test_the_tables_hold_what_numpy_and_scipy_say(finished):
    workdir, said = finished
    with open(workdir / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == list(SETTINGS)
    text = (workdir / "table.txt").read_text()
    assert text in said
    for row in rows:
        results = read_results(workdir, row["setting"])
        values = np.array([100 * result["test_accuracy"] for result in results])
        interval = scipy.stats.t.interval(0.95, 1, values.mean(), scipy.stats.sem(values))
        seconds = np.median([result["train_seconds"] for result in results])
        expected = [2, values.mean(), values.std(ddof=1), *interval, seconds]
        np.testing.assert_allclose([float(value) for value in list(row.values())[1:]], expected)
        assert f"{values.mean():.3f} ± {values.std(ddof=1):.3f}" in text
    with open(workdir / "runs.csv") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 4
    for run in runs:
        results = read_results(workdir, run["setting"])[int(run["seed"])]
        assert {key: run[key] for key in results} == {key: str(value) for key, value in results.items()}
        assert run["setting"] == f"learning_rate={run['learning_rate']}"


def test_tensorboard_shows_settings_seeds_and_metrics(finished):
    workdir, _ = finished
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(workdir), "--port=0"]
    with open(workdir.parent / "tensorboard.log", "w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url, deadline = None, time.time() + 60
            while not url and time.time() < deadline:
                time.sleep(0.2)
                log.seek(0)
                url = next((word for word in log.read().split() if word.startswith("http://")), None)

            def post(name, **request):
                question = urllib.request.Request(
                    f"{url}data/plugin/hparams/{name}",
                    json.dumps(request).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(question) as answer:
                    return json.load(answer)

            statuses = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"]}
            groups = []
            while sum(len(group["sessions"]) for group in groups) < 4 and time.time() < deadline:
                time.sleep(0.2)
                groups = post("session_groups", startIndex=0, sliceSize=9, **statuses).get("sessionGroups", [])
            experiment = post("experiment")
        finally:
            process.terminate()
            process.wait()
    types = {info["name"]: info["type"] for info in experiment["hparamInfos"]}
    assert types == {"module": "DATA_TYPE_STRING", "learning_rate": "DATA_TYPE_FLOAT64"}
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == set(sweep.METRICS)
    assert [group["name"] for group in groups] == [str(workdir / setting) for setting in SETTINGS]
    for group, setting in zip(groups, SETTINGS, strict=True):
        all_results = read_results(workdir, setting)
        assert group["hparams"] == {"module": "mnist.train", "learning_rate": float(setting.partition("=")[2])}
        for seed, session in enumerate(group["sessions"]):
            assert session["name"] == f"{setting}/seed={seed}/hparams"
            metrics = {value["name"]["tag"]: value["value"] for value in session["metricValues"]}
            assert metrics == pytest.approx({metric: all_results[seed][metric] for metric in sweep.METRICS})
        means = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        mean = np.mean([results["test_accuracy"] for results in all_results])
        assert means["test_accuracy"] == pytest.approx(mean)


def test_only_what_is_missing_runs_again_and_a_failure_does_not_stop_the_rest(copy):
    missing = copy / SETTINGS[1] / "seed=0" / "results.json"
    before = json.loads(missing.read_text())
    others = [path for path in copy.glob("*/*/results.json") if path != missing]
    times = [path.stat().st_mtime_ns for path in others]
    missing.unlink()
    code, said = do_sweep(copy, grid="learning_rate=1e9,1e-3,3e-3", seeds=1, jobs=2)
    assert code == 1
    lines = said.splitlines()
    assert lines[0] == "1 of 3 runs are finished already"
    failed, done = sorted(lines[1:3], key=lambda line: "learning_rate=1e9" not in line)
    assert " learning_rate=1e9 seed=0: FAILED with exit code 1: error: the " in failed
    assert "Try a lower --learning_rate in another --workdir., see " in failed
    assert f" {SETTINGS[1]} seed=0: test accuracy " in done
    assert "1 of 3 runs FAILED" in said
    assert json.loads(missing.read_text())["test_accuracy"] == before["test_accuracy"]
    assert [path.stat().st_mtime_ns for path in others] == times
    with open(copy / "table.csv") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["0", "1", "1"]


def test_other_flags_make_a_finished_run_an_unfinished_one(copy):
    code, _ = do_sweep(copy, jobs=0)
    assert code == 0
    assert len(list(copy.glob("*/*/results.json"))) == 4
    code, _ = do_sweep(copy, jobs=0, arguments=["--dataset=digits", "--max_steps=6"])
    assert code == 0
    assert len(list(copy.glob("*/*/results.json"))) == 4  # kept, and not counted
    with open(copy / "table.csv") as file:
        assert {row["n"] for row in csv.DictReader(file)} == {"0"}
    for path in copy.glob("*/*/sweep.flags"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# python -m mnist.train --flagfile=")
        assert lines[1:] == ["--dataset=digits", "--max_steps=6", f"--{path.parts[-3]}", f"--{path.parts[-2]}"]


def test_sigterm_stops_the_runs_which_save(tmp_path):
    script = os.path.join(os.path.dirname(sweep.__file__), "sweep.py")
    flags = [f"--workdir={tmp_path / 'sweep'}", "--seeds=1", "--", "--dataset=digits", "--epochs=2000"]
    process = subprocess.Popen([sys.executable, script, *flags], stdout=subprocess.PIPE, text=True)
    run = tmp_path / "sweep" / "default" / "seed=0"
    deadline = time.time() + 60
    while not list(run.glob("checkpoints/ckpt-*.index")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"stopped; 0 of 1 runs are finished. To resume: python {script} --workdir=" in said
    log = (run / "log.txt").read_text()
    assert "stopped at step " in log
    step = log.partition("stopped at step ")[2].partition(",")[0]
    assert (run / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": "rho"}, "expected NAME=VALUE"),
        ({"grid": "rho=0.1,,0.2"}, "expected NAME=VALUE"),
        ({"grid": "rho="}, "expected NAME=VALUE"),
        ({"grid": "rho=1;"}, "expected NAME=VALUE"),
        ({"grid": "--rho=1"}, "expected NAME=VALUE"),
        ({"grid": "rho=1,1"}, "twice"),
        ({"grid": "rho=1;rho=2"}, "twice"),
        ({"grid": "seed=1,2"}, "the sweep sets"),
        ({"seeds": 0}, "--seeds=0"),
        ({"module": "mnist.no_such_module"}, "no such module"),
        ({"module": "no_such_package.module"}, "no such module"),
        ({"module": ""}, "no such module"),
        ({"arguments": ["--epochs", "5"]}, "'5' is not of the form --name=value"),
        ({"arguments": ["--seed=5"]}, "is set by the sweep"),
        ({"arguments": ["--learning_rate=1"]}, "is set by the sweep"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(Error, match=message) as caught:
        do_sweep(tmp_path / "sweep", **options)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("roh=0.1", "mnist.train cannot be run with these flags: there is no flag --roh"),
        ("learning_rate=1e-3,-1", "--learning_rate=-1: expected a number from 0 to 1e+09."),
    ],
)
def test_flags_that_the_module_does_not_take_are_refused_before_the_first_run(tmp_path, grid, message):
    with pytest.raises(Error, match=re.escape(message)):
        do_sweep(tmp_path / "sweep", grid=grid)
    assert not (tmp_path / "sweep").exists()


def test_the_table_has_the_best_setting_first_and_marked():
    numbers = {"a": (98.0, 0.1), "b": (99.0, 0.2), "c": (math.nan, math.nan), "long name": (99.0, 0.1)}
    keys = [f"test_accuracy_{key}_percent" for key in ("mean", "std", "low", "high")]
    rows = [
        {"setting": name, "n": 3} | dict(zip(keys, [mean, std, mean - std, mean + std], strict=True)) | {"seconds": 1.0}
        for name, (mean, std) in numbers.items()
    ]
    lines = sweep.format_table(rows, "test_accuracy").splitlines()[1:]
    assert [line[:12].split("  ")[0].strip() for line in lines] == ["b *", "long name *", "a", "c"]
    assert "nan" in lines[-1]


def test_two_plain_runs_are_compared_by_flags_and_metrics(finished):
    folders = [str(finished[0] / setting / "seed=0") for setting in SETTINGS]
    lines = compare.compare_runs(folders).splitlines()
    assert lines[0].split() == folders
    assert lines[1].split() == ["--learning_rate", "0.001", "0.003"]
    values = [read_results(finished[0], setting)[0]["test_loss"] for setting in SETTINGS]
    (row,) = [line.split() for line in lines if line.startswith("test_loss")]
    assert [float(cell) for cell in row[1:]] == pytest.approx([*values, values[1] - values[0]], rel=1e-3)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match=r"cannot write to .*file"):
        do_sweep(tmp_path / "file")


def test_a_path_as_a_value_stays_one_folder():
    runs = sweep.make_runs("W", sweep.parse_grid("data_dir=a/b,a_b; epochs=1"), 1)
    assert [run.workdir for run in runs] == ["W/data_dir=a%2Fb,epochs=1/seed=0", "W/data_dir=a_b,epochs=1/seed=0"]
    assert [run.setting["data_dir"] for run in runs] == ["a/b", "a_b"]


@pytest.mark.parametrize(("jobs", "threads"), [(1, "4"), (2, "2"), (3, "1"), (9, "1")])
def test_the_cores_are_shared_out(tmp_path, monkeypatch, jobs, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    (tmp_path / "show_threads.py").write_text(
        "import os\nprint({k: v for k, v in os.environ.items() if 'THREADS' in k})"
    )
    monkeypatch.chdir(tmp_path)
    sweep.start(sweep.Run("default", {}, 0, str(tmp_path)), "show_threads", jobs).wait()
    shown = (tmp_path / "log.txt").read_text()
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        assert f"'{name}': '{threads}'" in shown


def write_setting(folder, accuracies):
    """Writes results.json files; `accuracies` is a dict from seeds to test accuracies."""
    for seed, accuracy in accuracies.items():
        (folder / f"seed={seed}").mkdir(parents=True)
        (folder / f"seed={seed}" / "results.json").write_text(
            json.dumps({"dataset": "digits", "test_accuracy": accuracy})
        )
    return str(folder)


def compare_settings(tmp_path, first, second):
    """Returns the numbers and the text of a comparison."""
    folders = [write_setting(tmp_path / "sweep" / name, values) for name, values in (("a=1", first), ("a=2", second))]
    result = compare.compare(*(compare.read_values(folder, "test_accuracy") for folder in folders))
    return result, compare.report(folders, "test_accuracy", result)


def test_comparison_equals_scipy_and_pairs_by_seed(tmp_path):
    random = np.random.default_rng(0)
    first = random.normal(0.99, 0.002, 12)
    second = first + random.normal(0.001, 0.0005, 12)
    result, text = compare_settings(
        tmp_path, dict(enumerate(first)) | {77: 0.5}, dict(reversed(list(enumerate(second)))) | {88: 0.1}
    )
    test = scipy.stats.ttest_rel(100 * second, 100 * first)
    assert result["n"] == 12
    assert result["means"] == pytest.approx((100 * first.mean(), 100 * second.mean()))
    assert result["stds"] == pytest.approx((100 * first.std(ddof=1), 100 * second.std(ddof=1)))
    assert result["p_t"] == pytest.approx(test.pvalue, rel=1e-5)
    assert result["interval"] == pytest.approx(tuple(test.confidence_interval()), rel=1e-5)
    assert result["p_wilcoxon"] == pytest.approx(scipy.stats.wilcoxon(second - first).pvalue)
    assert result["d_z"] == pytest.approx(test.statistic / 12**0.5, rel=1e-5)
    assert "is distinguishable from chance at n = 12" in text.splitlines()[-1]


def test_noise_is_called_noise(tmp_path):
    _, text = compare_settings(tmp_path, {0: 0.98, 1: 0.99, 2: 0.985}, {0: 0.99, 1: 0.98, 2: 0.986})
    assert "is not distinguishable from chance at n = 3" in text.splitlines()[-1]
    assert "at n = 3 never below 0.25" in text


@pytest.mark.parametrize(
    ("count", "shift", "verdict"),
    [
        (4, 0, "There is no difference: each of the 4 seeds gave the same."),
        (4, 0.01, "The difference is not distinguishable from chance at n = 4 (Wilcoxon, p = 0.125)."),
        (8, 0.01, "The difference is distinguishable from chance at n = 8 (Wilcoxon, p = 0.00781)."),
    ],
)
def test_equal_differences(tmp_path, count, shift, verdict):
    first = {seed: 0.9 + 0.007 * seed for seed in range(count)}
    result, text = compare_settings(tmp_path, first, {seed: value + shift for seed, value in first.items()})
    assert result["difference"] == pytest.approx(100 * shift)
    assert result["interval"] == pytest.approx((100 * shift, 100 * shift))
    assert "not defined" in text
    assert "nan" not in text.replace(str(tmp_path), "")
    assert verdict in text.splitlines()[-1]


def test_comparison_names_mistakes(tmp_path):
    with pytest.raises(Error, match="1 seeds on one data set in common, of 2 and 1"):
        compare_settings(tmp_path, {0: 0.9, 1: 0.9}, {1: 0.9})
    with pytest.raises(Error, match="is not a folder"):
        compare.read_values(str(tmp_path / "nothing"), "test_accuracy")
    with pytest.raises(Error, match="has 2 settings"):
        compare.read_values(str(tmp_path / "sweep"), "test_accuracy")
    with pytest.raises(Error, match="has no seed=N"):
        compare.read_values(str(tmp_path / "sweep" / "a=1" / "seed=0"), "test_accuracy")
    with pytest.raises(Error, match="does not hold a run's validation_accuracy"):
        compare.read_values(str(tmp_path / "sweep" / "a=1"), "validation_accuracy")
    shutil.rmtree(tmp_path / "sweep" / "a=2")
    values = compare.read_values(str(tmp_path / "sweep"), "test_accuracy")  # of a single setting
    assert values == {("digits", 0): 90, ("digits", 1): 90}
    others = {("mnist", seed): value for (_, seed), value in values.items()}
    with pytest.raises(Error, match="0 seeds on one data set in common"):
        compare.compare(values, others)


def test_a_mean_over_two_data_sets_is_refused(copy):
    path = copy / SETTINGS[0] / "seed=0" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "mnist"}))
    with pytest.raises(Error, match=f"{SETTINGS[0]} mixes runs on digits and mnist"):
        do_sweep(copy, jobs=0)


def test_an_edited_flagfile_makes_a_finished_run_an_unfinished_one(tmp_path):
    recipe = tmp_path / "recipe.flags"
    options = {"grid": "", "seeds": 1, "arguments": [*ARGUMENTS, f"--flagfile={recipe}"]}
    counts = []
    for rate in (0.001, 0.001, 0.002):
        recipe.write_text(f"--learning_rate={rate}\n")
        do_sweep(tmp_path / "sweep", jobs=0, **options)
        if not counts:
            results = {"dataset": "digits", "steps": 5, "train_seconds": 1.0} | dict.fromkeys(sweep.METRICS, 0.9)
            (tmp_path / "sweep" / "default" / "seed=0" / "results.json").write_text(json.dumps(results))
        do_sweep(tmp_path / "sweep", jobs=0, **options)
        with open(tmp_path / "sweep" / "table.csv") as file:
            counts += [row["n"] for row in csv.DictReader(file)]
    assert counts == ["1", "1", "0"]
