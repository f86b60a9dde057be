"""The tensors of Meta's files: their names, older and fused forms of them, and how shards divide them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyorder.errors import UserError

ROWS, COLUMNS = 0, 1
"""Which dimension of a matrix the shards divide."""


@dataclass(frozen=True)
class Kind:
    """A kind of tensor: its name here, {} for the layer, and what the shards divide (None: each has all of it)."""

    name: str
    divided: int | None = None


KINDS = {
    "tok_embeddings.weight": Kind("model.embed_tokens.weight", COLUMNS),
    "layers.{}.attention_norm.weight": Kind("model.layers.{}.input_layernorm.weight"),
    "layers.{}.attention.wq.weight": Kind("model.layers.{}.self_attn.q_proj.weight", ROWS),
    "layers.{}.attention.wk.weight": Kind("model.layers.{}.self_attn.k_proj.weight", ROWS),
    "layers.{}.attention.wv.weight": Kind("model.layers.{}.self_attn.v_proj.weight", ROWS),
    "layers.{}.attention.wo.weight": Kind("model.layers.{}.self_attn.o_proj.weight", COLUMNS),
    "layers.{}.ffn_norm.weight": Kind("model.layers.{}.post_attention_layernorm.weight"),
    "layers.{}.feed_forward.w1.weight": Kind("model.layers.{}.mlp.gate_proj.weight", ROWS),
    "layers.{}.feed_forward.w2.weight": Kind("model.layers.{}.mlp.down_proj.weight", COLUMNS),
    "layers.{}.feed_forward.w3.weight": Kind("model.layers.{}.mlp.up_proj.weight", ROWS),
    "norm.weight": Kind("model.norm.weight"),
    "output.weight": Kind("lm_head.weight", ROWS),
}
"""Meta's tensors. Llama 3 divides the embedding by rows, which shows in its shape."""

OTHER_NAMES = {
    "attention.wqkv.layer_norm_weight": "attention_norm.weight",
    "feed_forward.norm.weight": "ffn_norm.weight",
    "feed_forward.mlp.layer_norm.weight": "ffn_norm.weight",
    "feed_forward.mlp.layer_norm_weight": "ffn_norm.weight",
    "feed_forward.mlp.fc2_weight": "feed_forward.w2.weight",
    "feed_forward.mlp.fc2.weight": "feed_forward.w2.weight",
    "feed_forward.w_in_shared_FD.weight": "feed_forward.w1.weight",
    "feed_forward.w_out_shared_DF.weight": "feed_forward.w2.weight",
    "feed_forward.w_swiglu_FD.weight": "feed_forward.w3.weight",
}
"""Of tensors of a layer, in files of the code that the networks were trained with."""

FUSED_ATTENTION = ("attention.wqkv.weight",)
"""Queries, keys and values one above the other, in each shard."""

FUSED_GATE = ("feed_forward.mlp.fc1_weight", "feed_forward.mlp.fc1.weight")
"""Gate (w1) and up projection (w3) one above the other, in each shard."""

IGNORED = re.compile(r"(.*\.)?(rope\.freqs|freqs_cis|freq_cis|_extra_state)")
"""Tables that follow from the configuration, and scales of the machines that the network was trained on."""

LAYER = re.compile(r"(layers\.\d+\.)(.*)")


def is_name(name: Any) -> bool:
    """Whether a key of a file is the name of a tensor, and not of one that is passed over."""
    return not (isinstance(name, str) and IGNORED.fullmatch(name))


def in_one_form(tensors: Mapping[str, Tensor], query_rows: int, file: str) -> dict[str, Tensor]:
    """The tensors of a shard under the names of `KINDS`; what is fused there is cut, without a copy.

    Args:
        tensors: by their names in the file.
        query_rows: of the query projection in this shard.
        file: for messages.

    Raises:
        UserError: a tensor is there twice, or has not the shape of what is fused in it.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for known, part in _parts(name, tensor, query_rows, file):
            if known in found:
                raise UserError(f"tensor {known!r} is twice in {file!r}, also as {name!r}: delete one of them.")
            found[known] = part
    return found


def _parts(name: str, tensor: Tensor, query_rows: int, file: str) -> list[tuple[str, Tensor]]:
    match = LAYER.fullmatch(name)
    if match is None:
        return [(name, tensor)]
    layer, own = match.groups()
    if own in FUSED_ATTENTION:
        key_rows = (tensor.shape[0] - query_rows) // 2 if tensor.dim() == 2 else 0
        if key_rows <= 0 or tensor.shape[0] != query_rows + 2 * key_rows:
            raise UserError(
                f"tensor {name!r} in {file!r} has shape {list(tensor.shape)}, which is not {query_rows} rows of "
                "queries with keys and values below: complete the folder, whose files must all be there, or mend "
                "params.json."
            )
        parts = tensor.split([query_rows, key_rows, key_rows])
        return [(f"{layer}attention.{kind}.weight", part) for kind, part in zip(("wq", "wk", "wv"), parts, strict=True)]
    if own in FUSED_GATE:
        if tensor.dim() != 2 or tensor.shape[0] % 2:
            found = f"tensor {name!r} in {file!r} has shape {list(tensor.shape)}"
            raise UserError(f"{found}, which is not two matrices: fetch it again.")
        parts = tensor.chunk(2)
        return [(f"{layer}feed_forward.{kind}.weight", part) for kind, part in zip(("w1", "w3"), parts, strict=True)]
    return [(f"{layer}{OTHER_NAMES.get(own, own)}", tensor)]
