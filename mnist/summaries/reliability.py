"""The reliability diagram: accuracy over confidence."""

from mnist.summaries.canvas import FONT, WIDTH, write_upwards

import numpy as np
from PIL import Image, ImageDraw


def draw_reliability(result):
    """Draws the reliability diagram of a `metrics.Calibration` (Guo et al., arXiv:1706.04599, figure 1).

    The height of a bar is the accuracy in a bin of confidence. Red marks its gap to the mean confidence. The
    calibration error is the mean of the gaps. Grey bars below are square roots of the numbers of images, so that few
    images stay visible.
    """
    left, top, side, strip = 44, 26, 296, 56
    canvas = Image.new("RGB", (WIDTH, top + side + 14 + strip + 36), "white")
    draw = ImageDraw.Draw(canvas)
    bottom, floor = top + side, top + side + 14 + strip
    draw.text((left, 6), f"expected calibration error {result.ece:.4f}", "black", FONT)
    draw.text((left + side, 6), "red: the gap", "firebrick", FONT, anchor="ra")
    roots, bins = np.sqrt(result.count / max(result.count.max(), 1)), len(result.count)
    for i in range(bins):
        x0, x1 = round(left + side * i / bins) + 1, round(left + side * (i + 1) / bins) - 1
        if np.isfinite([result.accuracy[i], result.confidence[i]]).all():
            bar, mean = (round(bottom - side * share) for share in (result.accuracy[i], result.confidence[i]))
            draw.rectangle((x0, bar, x1, bottom), "cornflowerblue")
            draw.rectangle((x0, min(bar, mean), x1, max(bar, mean)), "lightcoral", "firebrick")
            draw.line((x0, bar, x1, bar), "navy", 2)
        if result.count[i]:
            draw.rectangle((x0, floor - max(1, round(strip * roots[i])), x1, floor), "grey")
    draw.line((left, bottom, left + side, top), "black")  # accuracy equals confidence
    draw.rectangle((left, top, left + side, bottom), outline="grey")
    draw.line((left, floor, left + side, floor), "grey")
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        draw.text((left - 5, bottom - side * tick), f"{tick:g}", "black", FONT, anchor="rm")
        draw.text((left + side * tick, floor + 4), f"{tick:g}", "black", FONT, anchor="ma")
    draw.text((left + side / 2, floor + 18), "confidence", "black", FONT, anchor="ma")
    write_upwards(canvas, 11, top + side / 2 + 24, "accuracy")
    write_upwards(canvas, 11, floor - strip / 2 + 20, "images")
    return canvas
