"""Image files as square tiles of pixels, as Llama 4 was trained on them.

An image is put on the canvas of whole tiles that shrinks it least, scaled without distortion and padded with black at
the right and at the bottom; where that takes several tiles, the whole image squeezed into one tile follows them. Values
are computed in bfloat16, as they were in training. transformers' `Llama4ImageProcessor` computes the same numbers, but
needs torchvision, whose packages fit PyTorch's builds for GPUs alone.

Shape suffixes: C channels, Y and X pixels, T tiles, S side of a tile.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.errors import UserError
from anyorder.utils.annotations import shown

if TYPE_CHECKING:
    from PIL.Image import Image

    from anyorder.model.vision import VisionConfig

MOST_PIXELS = 2**26
"""Of an image: 67 million, more than most cameras have; larger ones are refused before they are decoded."""

DATA_URL = "data:"


def load_image(image: Image | str | Path | bytes) -> Image:
    """An image in red, green and blue, upright.

    Args:
        image: of Pillow, a file, the content of a file, or a `data:` URL with it in base64.

    Raises:
        UserError: it is missing, no image, damaged, or too large.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise UserError("images need Pillow, which is not installed: pip install pillow.") from None
    name = (
        "the image" if isinstance(image, bytes) else f"image {shown(str(image) if isinstance(image, Path) else image)}"
    )
    if isinstance(image, str) and image.startswith(DATA_URL):
        name, image = "the image of a data: URL", _of_data_url(image)
    if isinstance(image, str) and "://" in image[:16]:
        raise UserError(f"{name} is an address, and nothing is fetched here: give a file, or a data: URL.")
    if not isinstance(image, str | Path | bytes | PIL.Image.Image):
        raise UserError(f"{name} is of type {type(image).__name__}: give a file, its bytes, or an image of Pillow.")
    try:
        if isinstance(image, str | Path):
            image = Path(image).expanduser().read_bytes()
        opened = PIL.Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        width, height = opened.size
        if width * height > MOST_PIXELS:
            raise UserError(f"{name} has {width} x {height} pixels: scale it to at most {MOST_PIXELS} together.")
        return PIL.ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{name} is no file here: check the path.") from None
    except PIL.UnidentifiedImageError:
        raise UserError(f"{name} is in no form that Pillow reads: give a PNG or JPEG, for example.") from None
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{name} has too many pixels: scale it to at most {MOST_PIXELS}.") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises at damaged files depends on their form
        raise UserError(f"{name} is damaged or cannot be read ({error}): give another file.") from error


def _of_data_url(url: str) -> bytes:
    head, comma, content = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise UserError("the image of a data: URL is not in base64: write it as data:image/png;base64,....")
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise UserError(f"the image of a data: URL is not in base64 ({error}): encode its bytes again.") from None


def tiles_of(image: Image, config: VisionConfig) -> tuple[Tensor, tuple[int, int]]:
    """The tiles of an image, bfloat16 `[tiles, channels, side, side]`, and the rows and columns in which they lie.

    Where there are several, the whole image in one tile is the last, beside those in rows and columns.
    """
    pixels_CYX = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    pixels_CYX = pixels_CYX.view(image.height, image.width, 3).permute(2, 0, 1)
    side = config.image_size
    rows, columns = best_grid(image.height, image.width, config)
    height, width = rows * side, columns * side
    # Small images are not blown up to a canvas of several tiles, but padded.
    bound = min(max(image.height, side), height), min(max(image.width, side), width)
    canvas_CYX = _resized(pixels_CYX, _undistorted(image.height, image.width, bound))
    canvas_CYX = F.pad(canvas_CYX, (0, width - canvas_CYX.shape[2], 0, height - canvas_CYX.shape[1]))
    tile_TCSS = canvas_CYX.unflatten(2, (columns, side)).unflatten(1, (rows, side)).permute(1, 3, 0, 2, 4).flatten(0, 1)
    if rows * columns > 1:
        tile_TCSS = torch.cat((tile_TCSS, _resized(pixels_CYX, (side, side)).unsqueeze(0)))
    return (tile_TCSS.to(torch.bfloat16) * (1 / 255) - 0.5) / 0.5, (rows, columns)


def best_grid(height: int, width: int, config: VisionConfig) -> tuple[int, int]:
    """Rows and columns of tiles for an image of this height and width, in pixels.

    Of all grids the one that the image fills with the least enlargement; where all shrink it, the one that does so
    least; of equals the smallest.
    """
    most, side = config.max_tiles, config.image_size
    grids = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    size_N2 = torch.tensor(grids) * side
    scales = (size_N2 / torch.tensor([height, width])).amin(1).tolist()  # float32, in which ties are the published ones
    enlarging = [scale for scale in scales if scale >= 1]
    best = min(enlarging) if enlarging else max(scales)
    return min((grid for grid, scale in zip(grids, scales, strict=True) if scale == best), key=math.prod)


def _undistorted(height: int, width: int, bound: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width of an image within these bounds, in pixels, at least 1."""
    by_height, by_width = _scale(height, bound[0]), _scale(width, bound[1])
    if by_width < by_height:
        return max(1, min(math.floor(height * by_width), bound[0])), bound[1]
    return bound[0], max(1, min(math.floor(width * by_height), bound[1]))


def _scale(size: int, bound: int) -> float | Tensor:
    """`bound / size`; in float32 where it shrinks, since rounded down a product differs by a pixel now and then."""
    return torch.tensor(bound) / size if bound < size else bound / size


def _resized(pixels_CYX: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(pixels_CYX.unsqueeze(0), size, mode="bilinear", antialias=True)[0]
