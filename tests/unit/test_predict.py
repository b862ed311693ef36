"""Image files of all kinds become images as the training images look, and bad ones an error of one line."""

import io
import json
import os
import re
import struct
import tracemalloc
import types
import zlib

import mnist
from mnist import finished, predict
from mnist.data import Dataset, Examples, load, look_of_digits, read_digit
from mnist.loop import train_and_evaluate
from mnist.metrics import softmax
from mnist.model import CNN, make_predict_logits
from mnist.pictures import Look
from mnist.predict import read_image
from mnist.step import TrainStep

import keras
import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

DIGIT = Image.fromarray(load("digits").test.images[4, 4:24, 4:24, 0])


def draw_ink(side):
    """Draws a digit that somebody wrote, as high as the image: ink from 0 to 255, `[side, side]`."""
    return np.asarray(DIGIT.resize((side, side), Image.Resampling.BICUBIC))


def place(ink, shape, top, left):
    """Places ink on an empty image `[H, W]`."""
    image = np.zeros(shape, np.uint8)
    image[top : top + len(ink), left : left + len(ink)] = ink
    return image


def plain():
    return place(draw_ink(20), (28, 28), 4, 4)


def photograph(ink):
    """Draws pencil on paper under a lamp at the side, with uneven light, grain, and grey ink."""
    height, width = ink.shape
    light = np.linspace(1, 0.5, width) * np.linspace(1, 0.8, height)[:, np.newaxis]
    grain = np.random.default_rng(0).normal(0, 4, ink.shape)
    return np.clip((230 - ink * (150 / 255)) * light + grain, 0, 255).astype(np.uint8)


def in_form(*corners):
    """Draws the digit in the printed lines of a form."""
    image = Image.fromarray(255 - place(draw_ink(160), (280, 280), 80, 60))
    ImageDraw.Draw(image).line(corners, fill=0, width=3)
    return image


def turned():
    """Draws a digit as an upright camera saves it, which asks the viewer for a quarter turn."""
    image = Image.fromarray(255 - CENTRED).transpose(Image.Transpose.ROTATE_90)
    image.getexif()[0x0112] = 6  # orientation
    return image


CENTRED = place(draw_ink(200), (280, 280), 40, 40)
OPAQUE = np.full_like(CENTRED, 255)
IMAGES = {
    "mnist": Image.fromarray(plain()),
    "light on dark": Image.fromarray(CENTRED),
    "dark on light": Image.fromarray(255 - CENTRED),
    "colour": Image.fromarray(np.stack([255 - CENTRED, 240 - CENTRED // 2, 255 - CENTRED], axis=-1)),
    "transparent, dark ink": Image.fromarray(np.dstack([0 * CENTRED] * 3 + [CENTRED])),
    "16 bits": Image.fromarray(CENTRED.astype(np.uint16) * 257),
    "large": Image.fromarray(255 - place(draw_ink(900), (1500, 1500), 100, 500)),
    "off centre": Image.fromarray(255 - place(draw_ink(120), (300, 500), 170, 20)),
    "touches the border": Image.fromarray(255 - draw_ink(100)),
    "photograph": Image.fromarray(photograph(CENTRED)),
    "speck on grey": Image.fromarray(np.maximum(128 - CENTRED // 2, place(OPAQUE[:1, :1], CENTRED.shape, 9, 9))),
    "moved": Image.fromarray(place(draw_ink(20), (28, 28), 7, 1)),
    "box of a form": in_form((40, 40), (280, 40), (280, 240), (40, 240), (40, 40)),
    "on a line": in_form((0, 241), (280, 241)),
    "card": Image.fromarray(np.pad(np.dstack([255 - CENTRED] * 3 + [OPAQUE]), ((30, 30), (50, 50), (0, 0)))),
    "turned by a camera": turned(),
    "red on green": Image.fromarray(np.stack([60 + CENTRED // 2, 160 - CENTRED // 3, 60 + 0 * CENTRED], axis=-1)),
}


@pytest.mark.parametrize("stain", [0, 12])
def test_an_image_like_the_training_images_stays_as_it_is(tmp_path, stain):
    image = plain()
    image[0, 5] = stain
    Image.fromarray(image).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "digit.png")[..., 0], image)


def half_plane(shape, degrees, offset, softness=3):
    """Draws a ramp from 0 to 1, `softness` pixels wide, across a line at an offset from the middle."""
    y, x = np.indices(shape) - np.reshape(shape, [2, 1, 1]) / 2
    angle = np.radians(degrees)
    return np.clip((x * np.cos(angle) + y * np.sin(angle) - offset) / softness + 0.5, 0, 1)


def snapshot(kind):
    """Draws a photograph of a digit on paper with shadows, with lines, or beside a table."""
    ink = place(draw_ink(240), (480, 560), 130, 170) / 255
    paper = 225 * (1 - 0.75 * ink)
    if "ruled" in kind:
        y, x = np.indices(ink.shape)
        paper *= 1 - 0.4 * ((y - 0.026 * x) % 60 < 3) * (1 - ink)
    if "hard shadow" in kind:
        paper *= 1 - 0.45 * half_plane(ink.shape, 30, 20)
    if "soft shadow" in kind:
        paper *= 1 - 0.5 * half_plane(ink.shape, 200, 0, softness=90)
    if "table at the side" in kind:
        paper += (60 - paper) * half_plane(ink.shape, 5, 200)
    if "pencil" in kind:
        paper = 225 - (225 - paper) * 0.3

    noisy = np.random.default_rng(0).normal(paper, 12 if "grain" in kind else 2)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


SNAPSHOTS = ["soft shadow, grain", "ruled, hard shadow", "hard shadow, pencil", "table at the side, hard shadow"]
IMAGES |= {kind: snapshot(kind) for kind in SNAPSHOTS}


@pytest.mark.parametrize(
    ("name", "ending"), [(name, "jpg" if name in SNAPSHOTS else "png") for name in IMAGES] + [("colour", "jpg")]
)
def test_becomes_the_plain_digit(tmp_path, name, ending):
    path, image = tmp_path / f"digit.{ending}", IMAGES[name]
    image.save(path, exif=image.getexif(), quality=30 if name in SNAPSHOTS else 90)
    digit = read_image(path)
    assert (digit.dtype, digit.shape, digit.max() > 200) == (np.uint8, (28, 28, 1), True)
    assert np.corrcoef(digit.ravel(), plain().ravel())[0, 1] > 0.9


def drawing(*places):
    """Draws several inks on paper."""
    ink = np.zeros((300, 500), np.uint8)
    for drawn, top, left in places:
        ink[top : top + drawn.shape[0], left : left + drawn.shape[1]] |= drawn
    return Image.fromarray(230 - ink // 5 * 4)


FULL = np.full((300, 500), 255, np.uint8)
SMALLER = draw_ink(150), 60, 60
# Each row: inks with their places, and why they may not be one digit.
DRAWINGS = {
    "a plus": ([(FULL[:150, :40], 60, 120), (FULL[:40, :150], 110, 65)], "unlike the training images"),
    "one digit": ([SMALLER], None),
    "a 5 with its flag apart": ([(FULL[:20, :60], 60, 110), (draw_ink(150), 85, 60)], None),
    "a 1": ([(FULL[:200, :30], 60, 60)], None),
}


@pytest.mark.parametrize(("places", "doubt"), DRAWINGS.values(), ids=DRAWINGS)
def test_drawings_that_may_not_be_one_digit_are_doubted(tmp_path, places, doubt):
    drawing(*places).save(tmp_path / "digit.png")
    assert read_digit(tmp_path / "digit.png")[1] == doubt


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("predict")
    ended = start("mnist.train", "--workdir=run", "--dataset=digits", "--epochs=2", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "run"


def predict_here(workdir, paths, **options):
    defaults = {"workdir": str(workdir), "checkpoint": "newest", "json": False, "save_input": None}
    return predict.main(types.SimpleNamespace(**defaults | options), paths)


def test_few_digits_of_the_data_are_unlike_it(digits):
    assert 0 < np.mean(look_of_digits().unlike(digits.test.images[..., 0]) > 1) < 0.1  # other writers
    assert look_of_digits().unlike(255 - digits.test.images[..., 0]).min() > 1


def resized(images):
    """Returns images that their digits fill, as in Fashion-MNIST and KMNIST."""
    return np.stack([Image.fromarray(image[4:24, 4:24, 0]).resize((28, 28)) for image in images])


@pytest.mark.parametrize("change", [resized, np.invert])
def test_a_run_on_images_of_another_frame_predicts_them_as_they_are(tmp_path, digits, change, capsys):
    train, test = (Examples(change(part.images), part.labels) for part in (digits.train, digits.test))
    dataset = Dataset("own", None, train, test, test)
    step = TrainStep(CNN(), keras.optimizers.Adam())
    train_and_evaluate(step, dataset, str(tmp_path / "run"), max_steps=2)
    trained = finished.load(str(tmp_path / "run"))
    for field, saved, expected in zip(Look._fields, trained.look, Look.of(train.images), strict=True):
        np.testing.assert_array_equal(saved, expected, err_msg=field)
    images = test.images[:6]
    paths = [str(tmp_path / f"{i}.png") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    capsys.readouterr()
    assert predict_here(tmp_path / "run", paths, json=True, save_input=str(tmp_path / "seen")) == 0
    rows = json.loads(capsys.readouterr().out)
    probabilities = softmax(make_predict_logits(trained.model)(images).numpy())
    for row, image, expected in zip(rows, images, probabilities, strict=True):
        with Image.open(row["input"]) as seen:
            np.testing.assert_array_equal(np.asarray(seen), image[..., 0])
        assert row["probability"] == pytest.approx(expected.max(), abs=1e-5)
    # Larger pictures and photographs of other polarity get the paper and the frame of the training images.
    for picture in (Image.fromarray(images[4, ..., 0]).resize((112, 112)), IMAGES["photograph"]):
        picture.save(tmp_path / "large.png")
        seen = read_image(tmp_path / "large.png", trained.look)
        assert np.corrcoef(seen.ravel(), images[4].ravel())[0, 1] > 0.9


@pytest.mark.parametrize("change", [lambda x, y: x.repeat(2, 0), lambda x, y: x[np.argsort(y)][:1497]])
def test_the_look_of_copies_and_of_sorted_data_is_that_of_the_data(digits, change):
    images, labels = digits.train
    assert np.mean(Look.of(change(images, labels)).unlike(digits.test.images[..., 0]) > 1) < 0.1


def test_pictures_without_paper_are_read_as_they_are(tmp_path):
    noise = np.random.default_rng(0).normal(0, 1, (300, 112, 112))
    pictures = np.clip(110 + 300 * ndimage.gaussian_filter(noise, (0, 9, 9)), 0, 255).astype(np.uint8)
    small = np.stack([np.asarray(Image.fromarray(picture).resize((28, 28))) for picture in pictures])
    Image.fromarray(pictures[5]).save(tmp_path / "large.png")
    seen, doubt = read_digit(tmp_path / "large.png", Look.of(small[..., np.newaxis]))
    assert np.corrcoef(seen.ravel(), small[5].ravel())[0, 1] > 0.95
    assert doubt is None


def test_bad_files_among_good_ones(tmp_path, workdir, start):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    drawing(SMALLER).save(tmp_path / "a" / "x.png")
    drawing(*DRAWINGS["a plus"][0]).save(tmp_path / "b" / "x.png")
    (tmp_path / "text.png").write_text("hello\n")
    (tmp_path / "cut.png").write_bytes(PNG[: len(PNG) // 2])
    (tmp_path / "bomb.png").write_bytes(bomb_bytes(60_000, 60_000))
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    bad = ["none.png", "a", "text.png", "cut.png", "bomb.png", "loop.png", "pipe.png"]
    paths = ["a/x.png", *bad, "b/x.png"]
    ended = start("mnist.predict", f"--workdir={workdir}", "--save_input=seen/deep", *paths, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "")
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == paths
    for line in lines[1:-1]:
        assert re.fullmatch(r"\S+: error: .{10,}\.", line)
    for line in (lines[0], lines[-1]):
        assert re.match(r"\S+: \d \([\d.]+%\), \d [\d.]+%, \d [\d.]+%", line)
    assert lines[-1].endswith("  unsure: unlike the training images")
    # Both files have one name.
    assert sorted(os.listdir(tmp_path / "seen" / "deep")) == ["0001_x.png", "0009_x.png"]
    ended = start("mnist.predict", f"--workdir={workdir}", "--json", *paths, cwd=tmp_path)
    rows = json.loads(ended.stdout)
    assert (ended.returncode, [row["file"] for row in rows]) == (1, paths)
    assert ["error" in row for row in rows] == [False, *[True] * len(bad), False]
    for row, doubt in ((rows[0], False), (rows[-1], "unlike the training images")):
        probabilities = [best["probability"] for best in row["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len({best["class"] for best in row["top"]}) == 3
        first = row["top"][0]
        assert (row["probability"], row["class"], str(row["digit"])) == (probabilities[0], *[first["class"]] * 2)
        assert row["unsure"] == (doubt or ("low probability" if probabilities[0] < 0.7 else False))


def png_bytes(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def frames_bytes(kind):
    file, frames = io.BytesIO(), [Image.new("L", (30, 30), level) for level in (0, 100, 200)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def bomb_bytes(width, height):
    """Returns a small PNG whose header claims `width` x `height` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PNG = png_bytes(IMAGES["mnist"])
BAD_FILES = {
    "text": (b"hello\n", "not an image"),
    "truncated": (PNG[: len(PNG) // 2], "digit.png"),
    "white": (png_bytes(Image.new("L", (50, 50), 255)), "holds no digit"),
    "one pixel": (png_bytes(Image.new("L", (1, 1), 7)), "holds no digit"),
    "two digits": (png_bytes(drawing(SMALLER, (draw_ink(150), 60, 280))), "several digits, expected one: cut"),
    "touching digits": (png_bytes(drawing(SMALLER, (draw_ink(150), 70, 170))), "into one file for each"),
    "overlapping digits": (png_bytes(drawing(SMALLER, (draw_ink(140), 75, 150))), "into one file for each"),
    "a block": (png_bytes(drawing((FULL[:160, :150], 60, 60))), "nothing in it looks like"),
    "a dash": (png_bytes(drawing((FULL[:14, :300], 140, 60))), "nothing in it looks like"),
    "frames": (frames_bytes("GIF"), "3 pages or frames"),
    "pages": (frames_bytes("TIFF"), "3 pages or frames"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(100), "convert it to PNG or JPEG"),
    "grain alone": (png_bytes(Image.fromarray(photograph(np.zeros((200, 300), np.uint8)))), "holds no digit"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tmp_path, content, message):
    path = tmp_path / "digit.png"
    path.write_bytes(content)
    assert message in error_of(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [6_000, 60_000])
def test_decompression_bomb_takes_no_memory(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb_bytes(side, side))
    tracemalloc.start()
    try:
        assert "pixels" in error_of(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def error_of(path):
    """Returns the message of the error of `read_image`, checked to be one line with the path."""
    with pytest.raises(mnist.Error) as raised:
        read_image(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message
