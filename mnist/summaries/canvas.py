"""The elements of the pictures that Pillow draws: font, colours, text, a grid of images."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH = 350  # pixels: the width of TensorBoard's card, which scales wider pictures without smoothing
FONT = ImageFont.load_default(11)
LINE = 14  # pixels from one line of text to the next
BLUE, RED, GREY = (50, 100, 200), (210, 40, 40), (110, 110, 110)


def drawable(classes):
    """Replaces names of classes with other than ASCII characters, which Pillow's font lacks, by the class numbers."""
    return [name if name.isascii() else str(number) for number, name in enumerate(classes)]


def cut(text, width):
    """Shortens a text to at most `width` pixels. Cuts its middle, because names may differ at their end."""
    if FONT.getlength(text) <= width:
        return text
    for length in range(int(width / 2), 1, -1):  # no letter is narrower than two pixels
        short = f"{text[: length - length // 2]}…{text[len(text) - length // 2 :]}"
        if length < len(text) and FONT.getlength(short) <= width:
            return short
    return "…"


def grid(images, title, columns, text=0):
    """Lays out images of one size in rows of the full width, under a title.

    Returns: the canvas, and the corners `(x, y)` of the text above each image, which has `text` pixels.
    """
    cell = WIDTH // columns
    row = text + (images[0].height if images else 0) + 4
    canvas = Image.new("RGB", (WIDTH, LINE + 6 + -(-len(images) // columns) * row), "white")
    ImageDraw.Draw(canvas).text((3, 2), title, "black", FONT)
    corners = [(2 + i % columns * cell, LINE + 6 + i // columns * row) for i in range(len(images))]
    for image, (x, y) in zip(images, corners, strict=True):
        canvas.paste(image, (x, y + text))
    return canvas, corners


def write_upwards(canvas, x, y, text, colour="black"):
    """Writes a text from bottom to top. It begins at `y`, and the middle of its line is at `x`."""
    strip = Image.new("L", (round(FONT.getlength(text)) + 1, LINE))
    ImageDraw.Draw(strip).text((0, LINE / 2), text, 255, FONT, anchor="lm")
    canvas.paste(colour, (round(x - LINE / 2), round(y - strip.width)), strip.rotate(90, expand=True))


def mix(blue, red):
    """Mixes blue and red ink on white from their shares, arrays in [0, 1]. Returns: uint8 `[..., 3]`."""
    inks = np.multiply.outer(blue, 255 - np.array(BLUE)) + np.multiply.outer(red, 255 - np.array(RED))
    return (255 - np.minimum(inks, 255)).astype(np.uint8)
