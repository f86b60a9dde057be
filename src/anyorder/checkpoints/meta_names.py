"""The tensors of Meta's files, as one table: their names, older and fused forms of them, and how shards divide them.

Names of the table are those of the modules of Meta's code; its load hooks know the others, which are in files of the
code that the networks were trained with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyorder.errors import UserError

ROWS, COLUMNS = 0, 1
"""Which dimension of a matrix the shards divide."""


@dataclass(frozen=True)
class Kind:
    """A kind of tensor.

    Attributes:
        name: its name here, {} for the layer.
        divided: the dimension of the tensor here that the shards divide (None: each has all of it).
        others: further names of it in files.
        ours: a shard's part as it is laid out here, a view of the same memory; `experts` is their number.
        rotated: its rows are in interleaved pairs there and in halves here.
    """

    name: str
    divided: int | None = None
    others: tuple[str, ...] = ()
    ours: Callable[[Tensor, int], Tensor] = lambda tensor, experts: tensor
    rotated: bool = False


def _transposed(tensor: Tensor, experts: int) -> Tensor:
    return tensor.mT if tensor.dim() == 2 else tensor


def _of_experts(tensor: Tensor, experts: int) -> Tensor:
    """`[experts, out, in]` of `[experts, in, out]`, also where the experts are one below the other."""
    if tensor.dim() == 2 and experts and tensor.shape[0] % experts == 0:
        tensor = tensor.unflatten(0, (experts, -1))
    return tensor.mT if tensor.dim() == 3 else tensor


OF_NETWORK = {
    "tok_embeddings.weight": Kind("model.embed_tokens.weight", COLUMNS),
    "norm.weight": Kind("model.norm.weight"),
    "output.weight": Kind("lm_head.weight", ROWS),
}
"""Llama 3 and 4 divide the embedding by rows, which shows in its shape."""

OF_LAYER = {
    "attention_norm.weight": Kind("input_layernorm.weight", others=("attention.wqkv.layer_norm_weight",)),
    "attention.wq.weight": Kind("self_attn.q_proj.weight", ROWS, rotated=True),
    "attention.wk.weight": Kind("self_attn.k_proj.weight", ROWS, rotated=True),
    "attention.wv.weight": Kind("self_attn.v_proj.weight", ROWS),
    "attention.wo.weight": Kind("self_attn.o_proj.weight", COLUMNS),
    "ffn_norm.weight": Kind(
        "post_attention_layernorm.weight",
        others=(
            "feed_forward.norm.weight", "feed_forward.mlp.layer_norm.weight", "feed_forward.mlp.layer_norm_weight",
        ),
    ),
}  # fmt: skip

OF_DENSE = {
    "feed_forward.w1.weight": Kind("mlp.gate_proj.weight", ROWS, ("feed_forward.w_in_shared_FD.weight",)),
    "feed_forward.w2.weight": Kind(
        "mlp.down_proj.weight", COLUMNS,
        ("feed_forward.mlp.fc2_weight", "feed_forward.mlp.fc2.weight", "feed_forward.w_out_shared_DF.weight"),
    ),
    "feed_forward.w3.weight": Kind("mlp.up_proj.weight", ROWS, ("feed_forward.w_swiglu_FD.weight",)),
}  # fmt: skip
"""Of layers without experts."""

ROUTER = "feed_forward.router_DE"

OF_EXPERTS = {
    ROUTER: Kind("mlp.gate.weight", ours=_transposed),
    "feed_forward.experts.w1": Kind(
        "mlp.experts.gate_up_proj", 1, ("feed_forward.experts.moe_w_in_eD_F",), _of_experts
    ),
    "feed_forward.experts.w3": Kind(
        "mlp.experts.gate_up_proj", 1, ("feed_forward.experts.moe_w_swiglu_eD_F",), _of_experts
    ),
    "feed_forward.experts.w2": Kind("mlp.experts.down_proj", 2, ("feed_forward.experts.moe_w_out_eF_D",), _of_experts),
    "feed_forward.shared_expert.w1.weight": Kind(
        "mlp.shared_expert.gate_proj.weight", ROWS, ("feed_forward.w_in_shared_FD.weight",)
    ),
    "feed_forward.shared_expert.w2.weight": Kind(
        "mlp.shared_expert.down_proj.weight", COLUMNS, ("feed_forward.w_out_shared_DF.weight",)
    ),
    "feed_forward.shared_expert.w3.weight": Kind(
        "mlp.shared_expert.up_proj.weight", ROWS, ("feed_forward.w_swiglu_FD.weight",)
    ),
}  # fmt: skip
"""Of layers with experts, which have a router. Two of these are one tensor here, the first above the second."""

ENCODER = "vision_embeddings.vision_encoder."

OF_VISION = {
    f"{ENCODER}conv1._linear.weight": Kind("vision_model.patch_embedding.linear.weight", ROWS),
    f"{ENCODER}class_embedding": Kind("vision_model.class_embedding"),
    f"{ENCODER}positional_embedding_vlm": Kind("vision_model.positional_embedding_vlm"),
    **{
        f"{ENCODER}{theirs}.{kind}": Kind(f"vision_model.{ours}.{kind}")
        for theirs, ours in (("ln_pre", "layernorm_pre"), ("ln_post", "layernorm_post"))
        for kind in ("weight", "bias")
    },
    "vision_embeddings.vision_adapter.mlp.c_fc.weight": Kind("vision_model.vision_adapter.mlp.fc1.weight", ROWS),
    "vision_embeddings.vision_adapter.mlp.c_proj.weight": Kind("vision_model.vision_adapter.mlp.fc2.weight", COLUMNS),
    "vision_projection.weight": Kind("multi_modal_projector.linear_1.weight", ROWS),
}
"""Of networks with vision."""

OF_VISION_LAYER = {
    f"{theirs}.{kind}": Kind(f"{ours}.{kind}", divided if kind == "weight" or divided == ROWS else None)
    for theirs, ours, divided in (
        ("ln_1", "input_layernorm", None),
        ("attn.wq", "self_attn.q_proj", ROWS),
        ("attn.wk", "self_attn.k_proj", ROWS),
        ("attn.wv", "self_attn.v_proj", ROWS),
        ("attn.wo", "self_attn.o_proj", COLUMNS),
        ("ln_2", "post_attention_layernorm", None),
        ("mlp.c_fc", "mlp.fc1", ROWS),
        ("mlp.c_proj", "mlp.fc2", COLUMNS),
    )
    for kind in ("weight", "bias")
}
"""Of a layer of the vision encoder."""

FUSED = {
    "attention.wqkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "feed_forward.mlp.fc1_weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
    "feed_forward.mlp.fc1.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
"""Several matrices one above the other, in each shard."""

DROPPED = re.compile(
    r"(.*\.)?(rope\.freqs|freqs_cis|freq_cis|_extra_state|global_gate_stats_3E|running_gate_stats_3E"
    r"|expert_activation_DE)"
)
"""Tables that follow from the configuration, scales of machines, and statistics of training."""

LAYER, VISION_LAYER = "layers.{}.", f"{ENCODER}transformer.resblocks.{{}}."

TABLES: dict[str, tuple[str, tuple[Mapping[str, Kind], ...]]] = {
    LAYER: ("model.layers.{}.", (OF_LAYER, OF_EXPERTS, OF_DENSE)),
    VISION_LAYER: ("vision_model.model.layers.{}.", (OF_VISION_LAYER,)),
    "": ("", (OF_NETWORK, OF_VISION)),
}
"""What a name begins with there and here, {} for the layer, and the tables of what follows."""


def is_name(name: Any) -> bool:
    """Whether a key of a file is the name of a tensor, and not of one that is dropped."""
    return not (isinstance(name, str) and DROPPED.fullmatch(name))


def known_names(tensors: Mapping[str, Tensor], query_rows: int, file: str) -> dict[str, tuple[Tensor, Kind | None]]:
    """The tensors of a shard under the names of the tables; what is fused there is cut, without a copy.

    Args:
        tensors: by their names in the file.
        query_rows: of the query projection in this shard.
        file: for messages.

    Returns:
        Each with its kind, under whose `name` it is found here; None where the tables have none.

    Raises:
        UserError: a tensor is there twice, or has not the shape of what is fused in it.
    """
    found: dict[str, tuple[Tensor, Kind | None]] = {}
    for name, tensor in tensors.items():
        begin, layer, own = _begin(name)
        with_experts = f"{begin}{ROUTER}" in tensors
        for known, part in _parts(name, own, tensor, query_rows, file):
            theirs, kind = _kind(begin, layer, known, with_experts)
            if theirs in found:
                raise UserError(f"tensor {theirs!r} is twice in {file!r}, also as {name!r}: delete one of them.")
            found[theirs] = (part, kind)
    return found


def _begin(name: str) -> tuple[str, str, str]:
    """What a name begins with, the number of its layer, and the rest."""
    for begin in (LAYER, VISION_LAYER):
        if match := re.match(re.escape(begin).replace(r"\{\}", r"(\d+)"), name):
            return match[0], match[1], name[match.end() :]
    return "", "", name


def _kind(begin: str, layer: str, own: str, with_experts: bool) -> tuple[str, Kind | None]:
    """The name in the tables, whole, and the kind, with its whole name here."""
    pattern = next(p for p in TABLES if p.format(layer) == begin)
    ours, tables = TABLES[pattern]
    for table in tables:
        if table is (OF_DENSE if with_experts else OF_EXPERTS):
            continue
        for theirs, kind in table.items():
            if own == theirs or own in kind.others:
                whole = Kind(ours.format(layer) + kind.name, kind.divided, (), kind.ours, kind.rotated)
                return begin + theirs, whole
    return begin + own, None


def _parts(name: str, own: str, tensor: Tensor, query_rows: int, file: str) -> list[tuple[str, Tensor]]:
    """What is fused in a tensor, by name in the tables; itself if nothing is."""
    if own not in FUSED:
        return [(own, tensor)]
    parts = FUSED[own]
    if len(parts) == 3:
        key_rows = (tensor.shape[0] - query_rows) // 2 if tensor.dim() == 2 else 0
        if key_rows <= 0 or tensor.shape[0] != query_rows + 2 * key_rows:
            raise UserError(
                f"tensor {name!r} in {file!r} has shape {list(tensor.shape)}, which is not {query_rows} rows of "
                "queries with keys and values below: complete the folder, whose files must all be there, or mend "
                "params.json."
            )
        return list(zip(parts, tensor.split([query_rows, key_rows, key_rows]), strict=True))
    if tensor.dim() != 2 or tensor.shape[0] % 2:
        found = f"tensor {name!r} in {file!r} has shape {list(tensor.shape)}"
        raise UserError(f"{found}, which is not two matrices: fetch it again.")
    return list(zip(parts, tensor.chunk(2), strict=True))
