"""Evaluates a run, exactly, over every example: python -m mnist.evaluate --workdir=runs/NAME"""

from mnist import data, finished
from mnist.command import run
from mnist.metrics import compute_metrics, count_confusions
from mnist.model import make_predict_logits
from mnist.readers import NUM_CLASSES
from mnist.settings import Setting, local_path


class Evaluate:
    """What is evaluated."""

    workdir = Setting(None, "Folder of a run.", kind=local_path)
    data_dir = Setting(None, "Folder of other data to evaluate on. Default: the run's own.", kind=local_path)
    dataset = Setting(None, "Other data set to evaluate on. Default: the run's own.", kind=data.NAMES[1:])
    eval_batch_size = Setting(500, "Images at a time; has no part in the result.", low=1)


def main(options):
    from sklearn.metrics import classification_report

    trained = finished.load(options.workdir)
    if options.dataset or options.data_dir:
        test = data.load(options.dataset or "auto", options.data_dir).test
    else:
        test = trained.data.test
    logits = make_predict_logits(trained.model, options.eval_batch_size)(test.images).numpy()
    metrics = compute_metrics(logits, test.labels)
    predictions = logits.argmax(axis=1)
    print(f"step {trained.step}, {len(test.labels):,} test images")
    print(f"loss {metrics['loss']:.6f}, accuracy {metrics['accuracy']:.4f}\n")
    print(classification_report(test.labels, predictions, labels=range(NUM_CLASSES), digits=4, zero_division=0))
    print("confusion matrix (row: label, column: prediction)")
    for digit, row in enumerate(count_confusions(test.labels, predictions, NUM_CLASSES)):
        print(f"{digit}: " + " ".join(f"{count:5d}" for count in row))


if __name__ == "__main__":
    run(main, Evaluate)
