"""What transformers' `Llama4ImageProcessor` makes of images, kept beside the tests, which do not need torchvision then.

`python -m tests.api.llama4_tiles` writes it anew where torchvision is installed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

FILE = Path(__file__).with_suffix(".safetensors")

SIDE, MOST = 14, 4
"""Of a tile, in pixels; tiles at most."""

SIZES = ((14, 14), (40, 9), (9, 40), (31, 25), (600, 400), (3, 90), (57, 56), (1, 1))
"""Width and height: one tile, rows, columns, squares, and images that shrink, that grow, and that are thin."""


def image(width: int, height: int) -> Image.Image:
    """A ramp with fine stripes."""
    x_1X, y_Y1 = torch.arange(width).unsqueeze(0), torch.arange(height).unsqueeze(1)
    channels = (255 * x_1X // width + 0 * y_Y1, 255 * y_Y1 // height + 0 * x_1X, 37 * x_1X + 91 * y_Y1)
    pixels_YXC = torch.stack([channel % 256 for channel in channels], -1).to(torch.uint8)
    return Image.fromarray(pixels_YXC.numpy())


def name(width: int, height: int) -> str:
    """Of the tiles of an image of this size."""
    return f"{width} x {height}"


def kept() -> dict[str, Tensor]:
    """The tiles `[tiles, channels, side, side]` of each image, and by its name with "grid" their rows and columns."""
    return load_file(FILE)


def published() -> dict[str, Tensor]:
    """The same, made anew by transformers' processor, which needs torchvision."""
    from transformers import Llama4ImageProcessor

    processor = Llama4ImageProcessor(size={"height": SIDE, "width": SIDE}, max_patches=MOST)
    found: dict[str, Tensor] = {}
    for size in SIZES:
        made = processor(image(*size), return_tensors="pt")
        found[name(*size)] = made["pixel_values"].contiguous()
        found[f"{name(*size)} grid"] = made["aspect_ratios"][0].contiguous()
    return found


if __name__ == "__main__":
    save_file(published(), FILE)
