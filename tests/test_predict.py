"""Image files of all kinds become digits as MNIST has them; bad ones a one-line error."""

import io
import struct
import tracemalloc
import zlib

import mnist
from mnist.predict import read_image

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw


def draw_ink(side):
    """A digit 4 of uneven sides: ink 0 to 255, `[side, side]`, its box as high as the image."""
    image = Image.new("L", (400, 400))
    draw = ImageDraw.Draw(image)
    draw.line([(150, 0), (70, 260), (330, 260)], fill=255, width=40)
    draw.line([(250, 100), (250, 399)], fill=255, width=40)
    return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def place(ink, shape, top, left):
    """Ink on an empty image `[H, W]`."""
    image = np.zeros(shape, np.uint8)
    image[top : top + len(ink), left : left + len(ink)] = ink
    return image


def plain():
    """The digit as MNIST would have it: 20 pixels high, its centre of mass at pixel 14."""
    ink = draw_ink(20)
    row, column = (np.average(np.arange(20), weights=ink.sum(axis=axis)) for axis in (1, 0))
    return place(ink, (28, 28), round(14 - row), round(14 - column))


def dark_on_light(ink):
    return 255 - ink


def transparent(ink, level):
    """Ink of one grey level on nothing."""
    return Image.fromarray(np.stack([np.full_like(ink, level)] * 3 + [ink], axis=-1))


def photograph(ink):
    """Pencil on paper under a lamp at the side: uneven light, grain, ink that is not black."""
    height, width = ink.shape
    light = np.linspace(1, 0.5, width) * np.linspace(1, 0.8, height)[:, np.newaxis]
    grain = np.random.default_rng(0).normal(0, 4, ink.shape)
    return np.clip((230 - ink * (150 / 255)) * light + grain, 0, 255).astype(np.uint8)


CENTRED = place(draw_ink(200), (280, 280), 40, 40)
SPECK = np.full((1, 1), 255, np.uint8)
ASIDE = place(draw_ink(120), (300, 500), 170, 20)
IMAGES = {
    "mnist": Image.fromarray(plain()),
    "light on dark": Image.fromarray(CENTRED),
    "dark on light": Image.fromarray(dark_on_light(CENTRED)),
    "faint": Image.fromarray(200 - CENTRED // 4),
    "colour": Image.fromarray(np.stack([255 - CENTRED, 240 - CENTRED // 2, 255 - CENTRED], axis=-1)),
    "transparent, dark ink": transparent(CENTRED, 0),
    "transparent, light ink": transparent(CENTRED, 255),
    "palette": Image.fromarray(dark_on_light(CENTRED)).convert("P"),
    "one bit": Image.fromarray(dark_on_light(CENTRED)).convert("1"),
    "16 bits": Image.fromarray(CENTRED.astype(np.uint16) * 257),
    "12 bits": Image.fromarray(4095 - CENTRED.astype(np.uint16) * 16),
    "large": Image.fromarray(dark_on_light(place(draw_ink(900), (1500, 1500), 100, 500))),
    "tiny": Image.fromarray(place(draw_ink(14), (16, 16), 1, 1)),
    "off centre": Image.fromarray(dark_on_light(ASIDE)),
    "touches the border": Image.fromarray(dark_on_light(draw_ink(100))),
    "photograph": Image.fromarray(photograph(CENTRED)),
    "photograph, off centre": Image.fromarray(photograph(ASIDE)),
    "speck on grey": Image.fromarray(np.maximum(128 - CENTRED // 2, place(SPECK, CENTRED.shape, 9, 9))),
}


JPEG = [name for name, image in IMAGES.items() if image.mode in ("L", "RGB")]


@pytest.mark.parametrize(("name", "ending"), [(n, "png") for n in IMAGES] + [(n, "jpg") for n in JPEG])
def test_becomes_the_plain_digit(tmp_path, name, ending):
    IMAGES[name].save(tmp_path / f"digit.{ending}", quality=90)  # of JPEG
    digit = read_image(tmp_path / f"digit.{ending}")
    assert (digit.dtype, digit.shape) == (np.uint8, (28, 28, 1))
    assert np.corrcoef(digit.ravel(), plain().ravel())[0, 1] > 0.9
    assert digit.max() > 200
    for axis in (0, 1):
        centre = np.average(np.arange(28), weights=digit[..., 0].sum(axis=axis))
        assert abs(centre - 14) < 0.75


def test_leaves_an_image_of_mnist_as_it_is(tmp_path):
    Image.fromarray(plain()).save(tmp_path / "digit.png")
    digit = read_image(tmp_path / "digit.png")[..., 0]
    kept = digit > 0
    np.testing.assert_array_equal(digit[kept], plain()[kept])
    assert plain()[~kept].max() <= 64  # only the faintest rim may be cut off


def test_rotation_of_a_camera_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera stood upright: turn by a quarter to view
    turned = Image.fromarray(dark_on_light(CENTRED)).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "digit.jpg", exif=exif)
    assert np.corrcoef(read_image(tmp_path / "digit.jpg").ravel(), plain().ravel())[0, 1] > 0.9


def png_bytes(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def bomb_bytes(width, height):
    """A PNG of a few bytes whose header claims `width` x `height` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PNG = png_bytes(IMAGES["mnist"])
BAD_FILES = {
    "text": (b"hello\n", "not an image"),
    "empty": (b"", "not an image"),
    "truncated": (PNG[: len(PNG) // 2], "digit.png"),
    "header alone": (PNG[:40], "digit.png"),
    "white": (png_bytes(Image.new("L", (50, 50), 255)), "holds no digit"),
    "black": (png_bytes(Image.new("RGB", (28, 28))), "holds no digit"),
    "one pixel": (png_bytes(Image.new("L", (1, 1), 7)), "holds no digit"),
    "fully transparent": (png_bytes(Image.new("RGBA", (28, 28), (9, 9, 9, 0))), "holds no digit"),
    "grain alone": (png_bytes(Image.fromarray(photograph(np.zeros((200, 300), np.uint8)))), "holds no digit"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path, name):
    content, message = BAD_FILES[name]
    path = tmp_path / "digit.png"
    path.write_bytes(content)
    assert message in error_of(path)


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in error_of(tmp_path / "none.png")
    assert "directory" in error_of(tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [6_000, 10_000, 60_000])
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
    """The message of the `mnist.Error` that reading raises, checked to be one line with the path."""
    with pytest.raises(mnist.Error) as raised:
        read_image(path)
    message = str(raised.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@given(st.lists(st.tuples(st.integers(0, len(PNG) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(PNG)))
@settings(max_examples=100, deadline=None)
def test_damaged_png_is_read_or_refused(tmp_path_factory, changes, length):
    damaged = bytearray(PNG)
    for position, value in changes:
        damaged[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(damaged if length % 2 else damaged[:length])
    try:
        digit = read_image(path)
    except mnist.Error:
        error_of(path)
    else:
        assert (digit.dtype, digit.shape) == (np.uint8, (28, 28, 1))
