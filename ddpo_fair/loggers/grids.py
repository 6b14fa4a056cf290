"""Grids of images, as samples/ and evaluations show them."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 8  # of a grid, at least: room for the caption
MARGIN, STRIP = 2, 18  # pixels: between images, of the caption


def grid(images: np.ndarray, caption: str) -> Image.Image:
    """The images in rows under a strip with the caption.

    Args:
        images: float [N, H, W, 3] in [0, 1].
        caption: one line; cut where the grid ends.
    """
    N, H, W, _ = images.shape
    columns = max(math.ceil(math.sqrt(N)), min(N, COLUMNS))
    rows = math.ceil(N / columns)
    size = (columns * (W + MARGIN) + MARGIN, rows * (H + MARGIN) + MARGIN + STRIP)
    sheet = Image.new("RGB", size, "white")
    text = ImageDraw.Draw(sheet)
    text.text((MARGIN + 1, 2), caption, fill="black", font=ImageFont.load_default(11))
    pixels = np.uint8(np.round(np.clip(np.nan_to_num(images), 0.0, 1.0) * 255))
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (W + MARGIN), STRIP + MARGIN + row * (H + MARGIN))
        sheet.paste(Image.fromarray(image), corner)
    return sheet
