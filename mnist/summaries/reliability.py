"""The reliability diagram: confidence against accuracy."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def draw_reliability(result):
    """Draws the reliability diagram of a `metrics.Calibration` (Guo et al., arXiv:1706.04599, figure 1).

    A bar for each bin of confidence, as high as its accuracy; red from there to its mean confidence, the gap that the
    calibration error is the mean of. Below, how many images each bin holds, by square roots: few are to be seen.
    """
    font, left, top, side, strip = ImageFont.load_default(12), 44, 26, 296, 56
    canvas = Image.new("RGB", (350, top + side + 14 + strip + 36), "white")
    draw = ImageDraw.Draw(canvas)
    bottom, floor = top + side, top + side + 14 + strip
    draw.text((left, 6), f"expected calibration error {result.ece:.4f}", "black", font)
    draw.text((left + side, 6), "red: the gap", "firebrick", font, anchor="ra")
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
    draw.line((left, bottom, left + side, top), "black")  # where confidence is accuracy
    draw.rectangle((left, top, left + side, bottom), outline="grey")
    draw.line((left, floor, left + side, floor), "grey")
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        draw.text((left - 5, bottom - side * tick), f"{tick:g}", "black", font, anchor="rm")
        draw.text((left + side * tick, floor + 4), f"{tick:g}", "black", font, anchor="ma")
    draw.text((left + side / 2, floor + 18), "confidence", "black", font, anchor="ma")
    for text, middle in (("accuracy", top + side / 2), ("images", floor - strip / 2)):
        label = Image.new("RGB", (round(font.getlength(text)) + 2, 16), "white")
        ImageDraw.Draw(label).text((1, 8), text, "black", font, anchor="lm")
        canvas.paste(label.rotate(90, expand=True), (3, round(middle - label.width / 2)))
    return canvas
