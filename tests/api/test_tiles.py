"""Image files as tiles: transformers' numbers, and files that are no images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from anyorder.api.tiles import MOST_PIXELS, best_grid, load_image, tiles_of
from anyorder.errors import UserError
from anyorder.model.vision import VisionConfig
from tests.api import llama4_tiles


def config(side: int = llama4_tiles.SIDE, most: int = llama4_tiles.MOST) -> VisionConfig:
    return VisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, output_size=16, merge=1,
        image_size=side, max_tiles=most, image_token_id=0,
    )  # fmt: skip


@pytest.mark.parametrize("size", llama4_tiles.SIZES, ids=str)
def test_tiles_are_those_of_transformers(size: tuple[int, int]) -> None:
    expected, name = llama4_tiles.kept(), llama4_tiles.name(*size)
    tiles, grid = tiles_of(load_image(llama4_tiles.image(*size)), config())
    assert list(grid) == expected[f"{name} grid"].tolist()
    assert tiles.dtype == expected[name].dtype == torch.bfloat16
    assert torch.equal(tiles, expected[name])


def _torchvision_runs() -> bool:
    """Whether it is there and fits this build of PyTorch: those on PyPI fit its builds for GPUs alone."""
    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


@pytest.mark.skipif(not _torchvision_runs(), reason="needs a torchvision that fits this PyTorch, which is not there")
def test_the_kept_tiles_are_those_of_transformers_now() -> None:
    kept, made = llama4_tiles.kept(), llama4_tiles.published()
    assert made.keys() == kept.keys()
    assert all(torch.equal(made[name], tiles) for name, tiles in kept.items())


@pytest.mark.parametrize("most", [1, 2, 5, 16])
@pytest.mark.parametrize("size", [(336, 336), (1000, 500), (200, 900), (61, 60), (5000, 4999), (1, 3000)])
def test_the_grid_wastes_least(size: tuple[int, int], most: int) -> None:
    """The rule of the published code, word by word, over the factor pairs of all numbers of tiles."""
    width, height = size
    pairs = [(n // f, f) for n in range(1, most + 1) for f in range(1, n + 1) if n % f == 0]
    scale = {pair: min(pair[0] * 336 / height, pair[1] * 336 / width) for pair in pairs}
    growing = [pair for pair in pairs if scale[pair] >= 1]
    best = min(scale[pair] for pair in growing) if growing else max(scale.values())
    expected = min((pair for pair in pairs if scale[pair] == pytest.approx(best)), key=lambda pair: pair[0] * pair[1])
    assert best_grid(height, width, config(336, most)) == expected


def test_forms_of_an_image(tmp_path: Path) -> None:
    image = llama4_tiles.image(20, 30)
    image.save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for given in (image, tmp_path / "a.png", str(tmp_path / "a.png"), data, url, image.convert("RGBA")):
        assert load_image(given).tobytes() == image.tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "turned.png", exif=turned)
    assert load_image(tmp_path / "turned.png").size == (30, 20)
    assert load_image(image.convert("L")).mode == "RGB"


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def test_what_is_no_image(tmp_path: Path) -> None:
    stream = io.BytesIO()
    llama4_tiles.image(64, 64).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(_cut(stream.getvalue()))
    (tmp_path / "words.png").write_text("no image")
    huge = Image.new("L", (1, 1)).resize((MOST_PIXELS // 4096 + 1, 4096))
    for given, message in (
        (tmp_path / "none.png", "image '.*none.png' is no file here: check the path"),
        (tmp_path / "words.png", "image '.*words.png' is in no form that Pillow reads: give a PNG or JPEG"),
        (tmp_path / "cut.png", "image '.*cut.png' is damaged or cannot be read .*: give another file"),
        (tmp_path, "image '.*' is damaged or cannot be read .*: give another file"),
        (b"", "the image is in no form that Pillow reads"),
        (huge, "has 16385 x 4096 pixels: scale it to at most 67108864 together"),
        ("https://example.org/a.png", "image 'https://example.org/a.png' is an address, and nothing is fetched here"),
        ("data:image/png,abc", "the image of a data: URL is not in base64: write it as data:image/png;base64"),
        ("data:image/png;base64,a", "the image of a data: URL is not in base64 .*: encode its bytes again"),
        (3, "image 3 is of type int: give a file, its bytes, or an image of Pillow"),
    ):
        with pytest.raises(UserError, match=message):
            load_image(given)  # type: ignore[arg-type]
