"""The advice for files of data that are not read, by the ending of their names. No file is opened for it."""

import re

_SAVE = "np.savez('own.npz', x_train=..., y_train=..., x_test=..., y_test=...)"
_ADVICE = {
    (".parquet", ".arrow", ".feather"): "write each image of pandas.read_parquet(F) to train/LABEL/NUMBER.png or test/",
    (".mat",): f"scipy.io.loadmat(F), then {_SAVE}",
    (".pt", ".pth"): f"torch.load(F, weights_only=True), then {_SAVE}",
    (".pkl.gz", ".pickle.gz"): f"pickle.load(gzip.open(F), encoding='latin1') if you trust it, then {_SAVE}, where "
    "x is np.rint(256 * x).astype(np.uint8) for the file of deeplearning.net",
    (".pkl", ".pickle"): f"pickle.load(open(F, 'rb')) if you trust it, then {_SAVE}",
    (".h5", ".hdf5"): f"h5py.File(F), then {_SAVE}",
    (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar"): "unpack it, and name the folder",
    (".tfrecord", ".tfrecords"): "tfds.as_numpy(tfds.load(NAME, split='train', batch_size=-1)), the same for 'test', "
    f"then {_SAVE}",
    (".png", ".jpg", ".jpeg"): "put images into train/CLASS/ and test/CLASS/, or read one with python -m mnist.predict",
}


def advice_for(names):
    """Returns the first file name with a known ending and how to convert the file, as one sentence. Else None."""
    for name in names:
        base = re.sub(r"-\d+-of-\d+$", "", name.lower())  # x.tfrecord-00000-of-00001
        for endings, advice in _ADVICE.items():
            if base.endswith(endings):
                return f"{name} is not a data set that can be read. Convert it: {advice}."
    return None
