"""Feeds damaged files to every reader of outside data: python scripts/fuzz.py --seconds=60

Sound IDX, npz and PNG files are changed at random: in the bytes of the file, or within it, packed again
so that checksums hold and the damage gets deeper. A reader must return arrays or raise `mnist.Error`,
soon and in little memory. Prints counts for each reader. Exits with 1 at the first input that does
otherwise, and says where it is kept. The same --seed makes the same inputs.
"""

import collections
import functools
import gzip
import io
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib

from mnist import Error, predict
from mnist.cli import run
from mnist.data import readers
from mnist.settings import Setting

import numpy as np
from PIL import Image


class Fuzz:
    """How long, and what is too much."""

    seconds = Setting(60.0, "How long to try inputs.", low=0.0)
    seed = Setting(None, "Seed of the inputs. Default: a new one, which is printed.", kind=int)
    max_seconds = Setting(10.0, "Longest time that one input may take.", low=0.0)
    max_mib = Setting(1024, "Most MiB that the process may grow by over the whole run.", low=1)


def damage(draw, content):
    """`content` with up to four stretches overwritten, cut out, put in or repeated; at times cut short."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(min(len(changed), draw.choice([48, 2**30])) + 1)  # headers are at the start
        width = draw.choice([0, 1, 1, 2, 4, 16])
        new = draw.choice([b"", b"\0", b"\xff", b"\x7f", draw.randbytes(1), changed[start : start + 16]])
        changed[start : start + width] = new * draw.choice([1, width])
    return bytes(changed[: draw.randrange(len(changed) + 1)] if draw.random() < 0.1 else changed)


def damage_idx(draw, arrays, name="x_test"):
    array = arrays[name]
    return damage(draw, bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def damage_gz(draw, arrays, name="x_test"):
    content = gzip.compress(damage_idx(draw, arrays, name))
    return content if draw.random() < 0.5 else damage(draw, content)


def damage_npz(draw, arrays):
    deep = draw.random() < 0.5
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array)
            content = member.getvalue()
            archive.writestr(f"{name}.npy", damage(draw, content) if deep else content)
    return file.getvalue() if deep else damage(draw, file.getvalue())


def damage_png(draw, arrays):
    image = Image.fromarray(arrays["x_test"][0]).convert(draw.choice(["L", "RGB", "RGBA", "P", "1", "I;16", "LA"]))
    file = io.BytesIO()
    image.save(file, "png")
    content = damage(draw, file.getvalue())
    return mend_checksums(content) if draw.random() < 0.7 else content


def mend_checksums(png):
    """A PNG file whose chunks, as far as they can be told apart, have the checksums that they need."""
    mended, position = bytearray(png), 8
    while position + 12 <= len(mended):
        end = position + 8 + struct.unpack_from(">I", mended, position)[0]
        if end + 4 > len(mended):
            break
        struct.pack_into(">I", mended, end, zlib.crc32(mended[position + 4 : end]))
        position = end + 4
    return bytes(mended)


def read_npz(path):
    """All arrays of an npz file, by their names."""
    read = {"x": readers.read_images, "y": readers.read_labels}
    return {name: read[name[0]](path, name) for name in readers.NPZ_NAMES}


# Name of a row, reader, maker of damaged files, end of the file's name.
READERS = (
    ("IDX images", readers.read_images, damage_idx, ""),
    ("IDX images, gz", readers.read_images, damage_gz, ".gz"),
    ("IDX labels", readers.read_labels, functools.partial(damage_idx, name="y_test"), ""),
    ("IDX labels, gz", readers.read_labels, functools.partial(damage_gz, name="y_test"), ".gz"),
    ("npz", read_npz, damage_npz, ".npz"),
    ("PNG", predict.read_image, damage_png, ".png"),
)


def check_result(result):
    """Raises AssertionError unless `result` is what a reader promises."""
    for array in result.values() if isinstance(result, dict) else [result]:
        images = array.dtype == np.uint8 and array.shape[1:] == (28, 28, 1)
        labels = array.dtype in (np.uint8, np.int32) and array.ndim == 1
        assert images or labels or array.shape == (28, 28, 1), f"{array.dtype} {array.shape} was returned"


def peak_mib():
    """The most memory that the process has held, in MiB. getrusage counts KiB, but bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def try_reader(read, path):
    """Returns "read" or "refused", or else what went wrong."""
    try:
        check_result(read(path))
        return "read"
    except Error as error:
        return "refused" if len(str(error).splitlines()) <= 2 else f"message of many lines: {error}"
    except Exception:
        return traceback.format_exc()


def main(options):
    warnings.simplefilter("ignore")  # Pillow and NumPy warn of what they see
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"--seed={seed}", flush=True)
    draw = random.Random(seed)
    images = np.zeros([3, 28, 28], np.uint8)
    images[:, 6:22, 12:16] = np.frombuffer(draw.randbytes(3 * 16 * 4), np.uint8).reshape(3, 16, 4)
    labels = np.array([1, 7, 9], np.uint8)
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    counts, slowest = collections.Counter(), collections.Counter()
    before = peak_mib()
    end = time.monotonic() + options.seconds
    failure = None
    with tempfile.TemporaryDirectory() as folder:
        while failure is None and time.monotonic() < end:
            name, read, make, extension = draw.choice(READERS)
            content = make(draw, arrays)
            path = os.path.join(folder, f"input{extension}")
            with open(path, "wb") as file:
                file.write(content)
            start = time.monotonic()
            outcome = try_reader(read, path)
            seconds = time.monotonic() - start
            slowest[name] = max(slowest[name], seconds)
            if seconds > options.max_seconds:
                outcome = f"it took {seconds:.1f} s"
            if peak_mib() - before > options.max_mib:
                outcome = f"memory grew by {peak_mib() - before:.0f} MiB"
            if outcome not in ("read", "refused"):
                failure = f"{name}: {outcome.strip()}\nThe input is kept in {keep(content, extension)}"
            counts[name, outcome] += 1
    print(f"{'reader':<16}{'read':>9}{'refused':>9}{'slowest':>11}")
    for name, *_ in READERS:
        print(f"{name:<16}{counts[name, 'read']:>9,}{counts[name, 'refused']:>9,}{slowest[name] * 1e3:>8,.1f} ms")
    print(f"memory grew by {peak_mib() - before:.0f} MiB at most")
    if failure:
        print(failure)
        return 1


def keep(content, extension):
    handle, path = tempfile.mkstemp(extension, "fuzz-")
    with open(handle, "wb") as file:
        file.write(content)
    return path


if __name__ == "__main__":
    run(main, Fuzz)
