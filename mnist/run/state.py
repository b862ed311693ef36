"""The state of a run beside its variables. Every checkpoint holds it as JSON."""

import dataclasses

from mnist.metrics import RunningMeans


@dataclasses.dataclass
class RunState:
    """The part of a run that a resume needs beside the variables, and that other commands need to load the run."""

    step: int = 0  # updates so far
    totals: dict = dataclasses.field(default_factory=dict)  # sums over the epoch so far, see `RunningMeans`
    count: int = 0  # images in these sums
    history: list = dataclasses.field(default_factory=list)  # of dicts: step, train_<metric>, validation_<metric>
    times: list = dataclasses.field(default_factory=list)  # seconds of training before each evaluation
    seconds: float = 0.0  # of training so far
    images: int = 0  # trained on so far
    fingerprint: dict | None = None  # everything that the numbers depend on, see `fingerprint_of`
    traced: str | None = None  # the digest of the traced step
    provenance: dict = dataclasses.field(default_factory=dict)  # versions, code and machine, see `provenance.describe`
    dataset: str = ""  # the name of the data
    data_dir: str | None = None  # the folder of the data
    classes: tuple = ()  # the names of the classes
    dataset_sha256: str | None = None  # the digest of the data set with its class names
    validation_sha256: str | None = None  # the digest of the images and labels that validate
    test_sha256: str | None = None  # the digest of the test set
    measures: dict | None = None  # the step's own metrics, see `describe_measuring`
    keep_best: tuple | None = None  # the metric that --keep_best names, and whether its highest value is the best
    ended: int | None = None  # the last step of the plan whose run `after_evaluation` ended early

    @classmethod
    def from_json(cls, found):
        """Returns the state in a dict that `to_json` returned. Ignores keys that are not attributes."""
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in found.items() if name in names})

    def to_json(self):
        """Returns a dict with one key for each attribute."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def evaluated(self):
        """The step of the last evaluation, -1 before the first."""
        return self.history[-1]["step"] if self.history else -1

    @property
    def means(self):
        """The means over the epoch so far, a dict of floats with one key for each scalar of the step."""
        return RunningMeans(self.totals, self.count).means()

    def add_steps(self, scalars, batch_sizes, seconds):
        """Adds consecutive steps.

        Args:
          scalars: a dict of float32 arrays `[steps]`. The scalars of each step.
          batch_sizes: a list of ints. The number of images in each step.
          seconds: a float. The time that the steps took.
        """
        means = RunningMeans(self.totals, self.count)
        means.add(scalars, batch_sizes)
        self.totals, self.count = means.totals, means.count
        self.step += len(batch_sizes)
        self.images += sum(batch_sizes)
        self.seconds += seconds

    def add_evaluation(self, entry, ends_epoch):
        """Appends an entry to the history. Clears the sums if it ends an epoch."""
        self.history.append(entry)
        self.times.append(self.seconds)
        if ends_epoch:
            self.totals, self.count = {}, 0
