"""Images in the messages of a chat, as `data:` URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

import anyorder
from anyorder.model.llama import Llama
from anyorder.serving.plans import MOST_IMAGES
from tests import vision
from tests.api.llama4_tiles import image
from tests.serving.conftest import serving


def link(picture: Image.Image, end: int | None = None) -> str:
    """A URL of an image, or of its first bytes."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()[:end]).decode()}"


def asked(*links: str, **others: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": one}} for one in links]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is"}, *parts]}], **others}


@pytest.fixture(scope="module")
def seeing() -> Llama:
    torch.manual_seed(0)
    return vision.network()


@pytest.fixture(scope="module")
def client(seeing: Llama) -> Iterator[httpx.Client]:
    with serving(seeing, vision.tokenizer()) as (address, _), httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.mark.parametrize("order", ["left-to-right", "random", "diffusion"])
def test_images_are_seen_as_in_python(client: httpx.Client, seeing: Llama, order: str) -> None:
    """Beside others, of which each has its own."""
    pictures = [[image(90, 40)], [image(30, 30)], [image(30, 30), image(90, 40)], [image(40, 90)]]
    bodies = [
        asked(*map(link, images), order=order, max_tokens=6, temperature=1.0, seed=number % 2, n=2)
        for number, images in enumerate(pictures)
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: client.post("/v1/chat/completions", json=body).json(), bodies))
    texts = []
    for number, images in enumerate(pictures):
        content = [{"type": "text", "text": "what is"}, *({"type": "image", "image": one} for one in images)]
        out: Any = anyorder.generate(
            seeing, vision.tokenizer(), [{"role": "user", "content": content}], order=order, max_new_tokens=6,
            temperature=1.0, seed=number % 2, num_samples=2,
        )  # fmt: skip
        assert [choice["message"]["content"] for choice in answers[number]["choices"]] == out.text
        texts.append(out.text)
    assert len({tuple(text) for text in texts}) > 1
    assert answers[0]["usage"]["prompt_tokens"] > answers[1]["usage"]["prompt_tokens"] + 8


def test_what_is_no_image_is_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    small = link(image(30, 30))
    monkeypatch.setattr("anyorder.api.tiles.MOST_PIXELS", 90 * 40)
    for links, message in (
        (
            ["http://127.0.0.1/a.png"],
            "has an image at 'http://127.0.0.1/a.png': nothing is fetched, so give a data: URL.",
        ),
        (["file:///etc/passwd"], "nothing is fetched, so give a data: URL."),
        (["data:image/png;base64,AA*"], "the image of a data: URL is not in base64"),
        (["data:image/png,AAAA"], "the image of a data: URL is not in base64: write it as"),
        (["data:text/plain;base64,aGVsbG8="], "is in no form that Pillow reads: give a PNG or JPEG, for example."),
        ([link(image(90, 40), 300)], "is damaged or cannot be read"),
        ([link(image(91, 40))], "has 91 x 40 pixels: scale it to at most 3600 together."),
        ([small] * (MOST_IMAGES + 1), f"messages have 17 images: give at most {MOST_IMAGES}."),
    ):
        response = client.post("/v1/chat/completions", json=asked(*links, max_tokens=2))
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert message in error["message"]
        assert (error["param"], error["type"]) == ("messages", "invalid_request_error")
    long = asked(*[link(image(90, 40))] * MOST_IMAGES)
    assert "more than the 255 that leave" in client.post("/v1/chat/completions", json=long).json()["error"]["message"]
    fused = client.post("/v1/chat/completions", json=asked(small, phrasings=["what"]))
    assert "messages have images, so leave out one of them." in fused.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json=asked(small, max_tokens=2)).status_code == 200
