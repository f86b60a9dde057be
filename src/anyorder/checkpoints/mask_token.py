"""A mask token for a vocabulary that has none, so that a network that was trained otherwise can learn to diffuse.

Shape suffixes: V vocabulary, E hidden size.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anyorder.checkpoints import weights
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.utils.annotations import shown
from anyorder.utils.numbers import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

MASK = "<|mask|>"
"""The text of a new mask token unless another is given."""

MASK_LIKE = re.compile(r"[<\[|]+(?:[a-z]+_)?mask(?:_token)?[|\]>]+", re.IGNORECASE)
"""Names of mask tokens: `<mask>`, `[MASK]`, `<|mask|>`, `<|mdm_mask|>`."""

NOISE = 0.1
"""Of the new row, as a share of the spread of the others."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_mask_token(
    model: Llama, tokenizer: PreTrainedTokenizerBase, token: str | int = MASK, seed: int = 0
) -> tuple[Llama, int]:  # fmt: skip
    """Return the network with a token that hides others, and the id of that.

    In this order: the mask token of one of the network's modes; `token` as an id; the tokenizer's mask token; `token`
    where the vocabulary has that text, or, unless a text is chosen, its one token with the name of a mask. The row of
    such a token stays as it is, since it may have been trained. Otherwise `token` is added to the vocabulary, in an
    embedding that is spare or in a new row. The new row, of the embedding and of an untied head, is the mean of all
    others and a little noise, so that it is like no token in particular and its gradients are not those of another
    (Hewitt 2021, "Initializing new word embeddings for pretrained language models").

    Args:
        model: the network; what need not change is shared, not copied.
        tokenizer: the network's; gets the mask token, in place, unless the token is an ordinary one given by its id.
        token: the text of a mask token, or its id, also as text of digits.
        seed: decides the noise.

    Raises:
        UserError: `token` is an id, and the network's mask token is another one or its vocabulary is smaller; or
            several tokens have the name of a mask.
    """
    token_id = _as_id(token)
    size = model.config.vocab_size
    if token_id is not None and not 0 <= token_id < size:
        raise UserError(
            f"mask_token is {shown(token)}, but the network has {size} tokens: give an id below that, or a text."
        )
    known = next(iter(model.config.mask_token_ids), None)
    if known is not None:
        if token_id not in (None, known):
            raise UserError(f"mask_token is {token!r}, but the network's own mask token is {known}: leave it out.")
        if tokenizer.mask_token_id not in (None, known):
            logger.warning(
                "The network's mask token is %d, the tokenizer's %d: the network's is used.",
                known, tokenizer.mask_token_id,
            )  # fmt: skip
        return model, known
    if token_id is not None:
        if token_id in tokenizer.added_tokens_decoder:
            tokenizer.add_special_tokens({"mask_token": str(tokenizer.convert_ids_to_tokens(token_id))})
        return model, token_id
    known_tokens = len(tokenizer)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": _existing(tokenizer, str(token)) or str(token)})
    mask_token_id: int = tokenizer.mask_token_id
    if mask_token_id < min(known_tokens, size):
        return model, mask_token_id  # not new: the network may have read it before
    return _with_new_row(model, mask_token_id, seed), mask_token_id


def _as_id(token: str | int) -> int | None:
    if isinstance(token, str) and token.strip().isdecimal():
        return int(token) if len(token.strip()) < 20 else 2**63
    if isinstance(token, str) and token.strip():
        return None
    if is_whole(token):
        return token
    raise UserError(f"mask_token is {token!r}: give the text of a token, or its id.")


def _existing(tokenizer: PreTrainedTokenizerBase, token: str) -> str | None:
    """Return a token of the vocabulary that is meant: `token`, or the only one with the name of a mask."""
    added = [str(added) for added in tokenizer.added_tokens_decoder.values()]
    if token != MASK or token in added:
        return None
    named = [name for name in added if MASK_LIKE.fullmatch(name)]
    if len(named) > 1:
        raise UserError(
            f"mask_token is not chosen, and the vocabulary has {', '.join(map(repr, named))}: give one of them."
        )
    return named[0] if named else None


def _with_new_row(model: Llama, index: int, seed: int) -> Llama:
    """Return the network with a drawn row `index` in its embedding and in an untied head, larger where it must be."""
    rows = max(model.config.vocab_size, index + 1)
    larger = weights.blank(model.config.replace(vocab_size=rows), model.backend)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[Tensor, nn.Parameter] = {}  # tied weights stay one
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in (EMBEDDING, HEAD):
            if weight not in drawn:
                drawn[weight] = nn.Parameter(_with_row(weight.detach(), index, rows, generator))
            weight = drawn[weight]
        weights.put(larger, name, weight)
    return larger.train(model.training)


def _with_row(weight_VE: Tensor, index: int, rows: int, generator: torch.Generator) -> Tensor:
    """Return `[rows, hidden]`, all as before but for the row `index`."""
    wide_VE = weight_VE.to(torch.promote_types(weight_VE.dtype, torch.float32))
    noise_E = torch.randn(weight_VE.shape[1], generator=generator).to(wide_VE)
    row_E = wide_VE.mean(0) + NOISE * wide_VE.std(0) * noise_E
    larger_VE = weight_VE.new_zeros((rows, weight_VE.shape[1]))
    larger_VE[: len(weight_VE)] = weight_VE
    larger_VE[index] = row_E.to(weight_VE.dtype)
    return larger_VE
