"""A mask token for a vocabulary that has none, so that a network that was trained otherwise can learn to diffuse.

Shape suffixes: V vocabulary, E hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anyorder.checkpoints import weights
from anyorder.model.llama import Llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE = 0.1
"""Of the new row, as a share of the spread of the others."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_mask_token(
    model: Llama, tokenizer: PreTrainedTokenizerBase, token: str, seed: int = 0
) -> tuple[Llama, int]:  # fmt: skip
    """The network with a token that hides others, and the id of that.

    The network's own is taken if one of its ways has one; then the tokenizer's, if it has a mask token; otherwise
    `token` is added to the vocabulary, in an embedding that is spare or in a new row. The new row, of the embedding and
    of an untied head, is the mean of all others and a little noise, so that it is like no token in particular and
    its gradients are not those of another (Hewitt 2021, "Initializing new word embeddings for pretrained language
    models").

    Args:
        model: the network; what need not change is shared, not copied.
        tokenizer: the network's; `token` becomes its mask token, in place.
        token: the text of a new mask token.
        seed: decides the noise.
    """
    known = [way.mask_token_id for way in model.config.ways if way.mask_token_id is not None]
    if known:
        return model, known[0]
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": token})
    mask_token_id: int = tokenizer.mask_token_id
    used = len(tokenizer)
    if mask_token_id < used - 1 and mask_token_id < model.config.vocab_size:
        return model, mask_token_id  # not new: the network has read it before
    rows = max(model.config.vocab_size, mask_token_id + 1)
    larger = weights.blank(model.config.replace(vocab_size=rows), model.backend)
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[Tensor, nn.Parameter] = {}  # tied weights stay one
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in (EMBEDDING, HEAD):
            if weight not in drawn:
                drawn[weight] = nn.Parameter(_with_row(weight.detach(), mask_token_id, rows, generator))
            weight = drawn[weight]
        weights.put(larger, name, weight)
    return larger.train(model.training), mask_token_id


def _with_row(weight_VE: Tensor, index: int, rows: int, generator: torch.Generator) -> Tensor:
    """`[rows, hidden]`, all as before but for the row `index`."""
    wide_VE = weight_VE.to(torch.promote_types(weight_VE.dtype, torch.float32))
    noise_E = torch.randn(weight_VE.shape[1], generator=generator).to(wide_VE)
    row_E = wide_VE.mean(0) + NOISE * wide_VE.std(0) * noise_E
    larger_VE = weight_VE.new_zeros((rows, weight_VE.shape[1]))
    larger_VE[: len(weight_VE)] = weight_VE
    larger_VE[index] = row_E.to(weight_VE.dtype)
    return larger_VE
