"""Images in prompts: each becomes rows of the network, with ids of their own behind the vocabulary.

All decoders find rows by ids, so that a row of an image is a given token to them: no mask, order or score touches it.
In what a person gets, the image token stands for each again.

Shape suffixes: T tiles, N rows of all images, E hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anyorder.api.tiles import load_image, tiles_of
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.utils.annotations import shown
from anyorder.utils.reprs import counted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.model.config import ModelConfig

IMAGE = "<|image|>"
"""Stands in the text of a prompt where an image is put, as chat templates write it."""

START, END = "<|image_start|>", "<|image_end|>"
NEXT_TILE, NEXT_ROW = "<|tile_x_separator|>", "<|tile_y_separator|>"

TILES_AT_ONCE = 16
"""Of a pass of the vision encoder."""


class Images:
    """The images of a prompt, or of each of a list of prompts, as rows of a network.

    Args:
        model: a network with vision.
        tokenizer: of the network; may be None where prompts are token ids with an image token for each row.
        images: in the order in which the prompt has them; for a list of prompts, a list for each.
        encode: `encoded`, or what calls it elsewhere.

    Attributes:
        model: the network, whose ids from `vocab_size` on stand for the rows of the images.

    Raises:
        UserError: the network has no vision, or an image cannot be read.
    """

    def __init__(
        self, model: Llama, tokenizer: PreTrainedTokenizerBase | None, images: Sequence[Any],
        encode: Callable[[Llama, Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        if model.config.vision is None:
            raise UserError("there are images, and this network has no vision: leave them out, or load one that has.")
        if isinstance(images, str | bytes) or not isinstance(images, Sequence) or not images:
            raise UserError(f"images is {shown(images)}: give a list of at least one image, or of one list per prompt.")
        self._tokenizer, self._vision = tokenizer, model.config.vision
        self._nested = all(isinstance(entry, list | tuple) for entry in images)
        of_prompts = images if self._nested else [images]
        next_id = model.config.vocab_size
        rows: list[Tensor] = []
        self._of_prompts: list[list[tuple[range, tuple[int, int]]]] = []
        for of_prompt in of_prompts:
            placed = []
            for image in of_prompt:
                tile_TCSS, grid = tiles_of(load_image(image), self._vision)
                rows.append((encode or encoded)(model, tile_TCSS))
                placed.append((range(next_id, next_id + len(rows[-1])), grid))
                next_id += len(rows[-1])
            self._of_prompts.append(placed)
        self.model = model.with_images(torch.cat(rows)) if rows else model

    def place(self, prompts: Sequence[Sequence[int]], single: bool, called: str = "prompt") -> list[list[int]]:
        """Prompts with the ids of the rows of their images.

        An image is put where the token `<|image|>` stands; at the beginning, if the prompt has none. Where a prompt has
        an image token for each row already, these are replaced.

        Args:
            prompts: token ids of each.
            single: whether a single prompt was given, not a list of them.
            called: what messages call a prompt.

        Raises:
            UserError: a prompt has other images, or image tokens, than were given.
        """
        if single == self._nested:
            kind = "one prompt" if single else f"a list of {len(prompts)} prompts"
            remedy = "a list of images" if single else "a list of images for each, which may be empty"
            raise UserError(f"images has another form than the prompt, which is {kind}: give {remedy}.")
        if len(self._of_prompts) != len(prompts):
            raise UserError(
                f"images is {len(self._of_prompts)} lists for {len(prompts)} prompts: give a list for each, which may "
                "be empty."
            )
        for number, prompt in enumerate(prompts):
            if beyond := [token_id for token_id in prompt if token_id >= self.model.config.vocab_size]:
                remedy = f"give ids from 0 to {self.model.config.vocab_size - 1}, from the tokenizer of this network"
                raise UserError(f"{called} {number} has the token id {beyond[0]}: {remedy}.")
        return [
            self._placed(f"{called} {number}", list(prompt), of_prompt)
            for number, (prompt, of_prompt) in enumerate(zip(prompts, self._of_prompts, strict=True))
        ]

    def _placed(self, name: str, ids: list[int], images: Sequence[tuple[range, tuple[int, int]]]) -> list[int]:
        rows = [row for own, _ in images for row in own]
        tokens = ids.count(self._vision.image_token_id)
        if tokens:
            if tokens != len(rows):
                raise UserError(
                    f"{name} has {counted(tokens, 'image token')} for {counted(len(images), 'image')} of "
                    f"{counted(len(rows), 'row')}: give an image token for each row, or {IMAGE} once for each image."
                )
            left = iter(rows)
            return [next(left) if token_id == self._vision.image_token_id else token_id for token_id in ids]
        if not images and self._tokenizer is None:
            return ids
        mark = self._token(IMAGE)
        spelled = [self._spelled(*image) for image in images]
        if mark not in ids:
            begins = ids[:1] if ids[:1] == [self.model.config.bos_token_id] else []
            return [*begins, *(token_id for image in spelled for token_id in image), *ids[len(begins) :]]
        if ids.count(mark) != len(images):
            raise UserError(
                f"{name} has {counted(ids.count(mark), IMAGE)} for {counted(len(images), 'image')}: write it once for "
                "each image, or leave it out, which puts all images at the beginning."
            )
        following = iter(spelled)
        return [one for token_id in ids for one in (next(following) if token_id == mark else [token_id])]

    def _spelled(self, rows: range, grid: tuple[int, int]) -> list[int]:
        """The tokens of an image: tile by tile with separators, then the whole image."""
        per_tile = self._vision.rows_of_tile
        tiles = [list(rows[start : start + per_tile]) for start in range(0, len(rows), per_tile)]
        ids = [self._token(START)]
        if len(tiles) > 1:
            across = grid[1]
            for number, tile in enumerate(tiles[:-1], start=1):
                ids += [*tile, self._token(NEXT_TILE if number % across else NEXT_ROW)]
        return [*ids, self._token(IMAGE), *tiles[-1], self._token(END)]

    def _token(self, name: str) -> int:
        if self._tokenizer is None:
            raise UserError(
                "there are images and tokenizer is None: give the tokenizer, or token ids with an image token for each "
                "row of an image."
            )
        token_id: Any = self._tokenizer.convert_tokens_to_ids(name)
        if token_id is None or token_id == self._tokenizer.unk_token_id:
            raise UserError(f"the tokenizer has no token {name!r}, which images need: give that of the network.")
        return int(token_id)


@torch.no_grad()
def encoded(model: Llama, tile_TCSS: Tensor) -> Tensor:
    """The rows of an image, `[N, hidden]`."""
    return torch.cat([model.image_rows(part) for part in tile_TCSS.split(TILES_AT_ONCE)]).flatten(0, 1)


def seen(
    model: Llama, tokenizer: PreTrainedTokenizerBase | None, prompt: Any, images: Sequence[Any] | None
) -> tuple[Any, Images | None]:  # fmt: skip
    """The prompt for tokenizer and chat template, and the images that are given, or that its messages have.

    Raises:
        UserError: images are given twice, or see `Images`.
    """
    within = images_of_messages(prompt)
    if images is None and within is None:
        return prompt, None
    if images is not None and within is not None:
        raise UserError("images is given beside messages that have images themselves: leave out one of them.")
    return without_pixels(prompt), Images(model, tokenizer, within if images is None else images)


def as_tokens(ids: Sequence[int], config: ModelConfig) -> list[int]:
    """Ids with the image token for each row of an image."""
    if config.vision is None:
        return list(ids)
    return [config.vision.image_token_id if token_id >= config.vocab_size else token_id for token_id in ids]


def images_of_messages(prompt: Any) -> Any:
    """The images within messages, in their order: a list, or a list for each dialogue; None where there are none.

    A part of a message is `{"type": "image", "image": ...}` (or "path", or "url"), or OpenAI's
    `{"type": "image_url", "image_url": {"url": "data:..."}}`.
    """
    if _are_messages(prompt):
        return _images_within(prompt) or None
    entries = prompt if isinstance(prompt, list | tuple) else []
    found = [_images_within(entry) if _are_messages(entry) else [] for entry in entries]
    return found if any(found) else None


def _are_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def _images_within(messages: Sequence[Any]) -> list[Any]:
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    found = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
            continue
        image = next((part[name] for name in ("image", "path", "url", "image_url") if part.get(name) is not None), None)
        found += [image["url"] if isinstance(image, Mapping) and "url" in image else image] if image is not None else []
    return found


def without_pixels(prompt: Any) -> Any:
    """Messages whose parts name images only by their type, as chat templates read them; all else as it is."""
    if isinstance(prompt, list | tuple):
        return [without_pixels(entry) for entry in prompt]
    if isinstance(prompt, Mapping) and "role" in prompt and isinstance(prompt.get("content"), list | tuple):
        return {**prompt, "content": [_named(part) for part in prompt["content"]]}
    return prompt


def _named(part: Any) -> Any:
    is_image = isinstance(part, Mapping) and part.get("type") in ("image", "image_url")
    return {"type": "image"} if is_image else part
