"""Which module is split how, as data: patterns of module names, and styles in transformers' vocabulary.

| style | the module's weight | its input | its output |
|---|---|---|---|
| colwise | rows are split | whole | columns of the process |
| rowwise | columns are split | columns of the process | summed over processes |
| colwise_gather_output | rows are split | whole | gathered |
| rowwise_split_input | columns are split | whole, split by the module | summed over processes |
| embedding_rowwise | tokens are split | whole | summed over processes |
| replicated_with_grad_allreduce | whole; its gradient is summed over processes | heads of the process | the same |
| grouped_gemm | experts are split | whole | summed over processes |
| packed_colwise, moe_tp_experts | each expert is split | whole | summed over processes |

A module without a style is whole in each process, and computes the same in each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from anyorder.errors import UserError
from anyorder.model.config import ModelConfig

FULLY_SHARDED: Mapping[str, str] = {
    "embed_tokens": "free_full_weight",
    "layers.*": "free_full_weight",
    "norm": "keep_full_weight",
}
"""Of fully sharded data parallelism: which modules are gathered at a time, and whether they stay whole until the
backward pass; what transformers calls `base_model_fsdp_plan`."""

FULLY_SHARDED_HEAD: Mapping[str, str] = {"lm_head": "keep_full_weight"}

HEAD_PLAN: Mapping[str, str] = {"lm_head": "colwise_gather_output"}
"""Of the head, which is beside the part that Hugging Face calls `model`."""

ATTENTION = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}

HEAD_NORMS = {
    "layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
    "layers.*.self_attn.k_norm": "replicated_with_grad_allreduce",
}
"""Each process sees its own heads only."""

WHOLE_ATTENTION = {
    "layers.*.self_attn.q_proj": "colwise_gather_output",
    "layers.*.self_attn.k_proj": "colwise_gather_output",
    "layers.*.self_attn.v_proj": "colwise_gather_output",
    "layers.*.self_attn.o_proj": "rowwise_split_input",
}
"""With a norm over all heads (OLMoE), which needs the whole width: weights are split, attention is not."""

FEED_FORWARD = {
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}

SHARED_EXPERT = {
    "layers.*.mlp.shared_expert.gate_proj": "colwise",
    "layers.*.mlp.shared_expert.up_proj": "colwise",
    "layers.*.mlp.shared_expert.down_proj": "rowwise",
}

SPLIT_EXPERTS = {
    "layers.*.mlp.experts.gate_up_proj": "packed_colwise",
    "layers.*.mlp.experts.down_proj": "rowwise",
    "layers.*.mlp.experts": "moe_tp_experts",
}
"""Each process has a part of every expert: how transformers splits them."""

WHOLE_EXPERTS = {
    "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
    "layers.*.mlp.experts.down_proj": "grouped_gemm",
}
"""Each process has some experts whole: how this package splits them. Matrices stay as large as they are."""


def dense_plan(config: ModelConfig) -> dict[str, str]:
    """Styles of all modules but experts, by patterns of their names below `model`."""
    full_width = config.qk_norm == "learned-full-width"
    return {
        "embed_tokens": "embedding_rowwise",
        **(WHOLE_ATTENTION if full_width else ATTENTION),
        **(HEAD_NORMS if config.qk_norm == "learned" else {}),
        **(FEED_FORWARD if any(not kind.experts for kind in config.layers) else {}),
        **(SHARED_EXPERT if config.experts is not None and config.experts.shared_width else {}),
    }


def transformers_plan(config: ModelConfig) -> dict[str, str]:
    """What transformers calls `base_model_tp_plan`."""
    return dense_plan(config) | ({} if config.experts is None else SPLIT_EXPERTS)


def tensor_plan(config: ModelConfig) -> dict[str, str]:
    """Styles by which this package splits a network, by patterns of names of modules, or of parameters of experts."""
    below = dense_plan(config) | ({} if config.experts is None else WHOLE_EXPERTS)
    return {f"model.{pattern}": style for pattern, style in below.items()} | dict(HEAD_PLAN)


def style_of(name: str, plan: Mapping[str, str]) -> str | None:
    """Return the style of a module or parameter, such as "model.layers.3.self_attn.q_proj"; None: it is whole."""
    return plan.get(re.sub(r"\.\d+\.", ".*.", name))


SPLIT_DIMENSIONS: Mapping[str, Mapping[str, int]] = {
    "colwise": {"weight": 0, "bias": 0},
    "colwise_gather_output": {"weight": 0, "bias": 0},
    "rowwise": {"weight": 1},
    "rowwise_split_input": {"weight": 1},
    "embedding_rowwise": {"weight": 0},
}
"""By style, the dimension in which each parameter of a module is split; others are whole."""


def split_dimension(name: str, plan: Mapping[str, str]) -> int | None:
    """Return the dimension in which a parameter is split over processes, None where it is whole."""
    if style_of(name, plan) == "grouped_gemm":
        return 0
    module, _, leaf = name.rpartition(".")
    return SPLIT_DIMENSIONS.get(style_of(module, plan) or "", {}).get(leaf)


def check_divisible(config: ModelConfig, processes: int) -> None:
    """Refuse to split a network over a number of processes that does not divide what is split.

    The vocabulary may be split unevenly.

    Raises:
        UserError: see above; names the numbers that do.
    """
    if processes < 1:
        raise UserError(f"tensor_parallel is {processes}: give a number of processes, 1 for no split.")
    if processes > 1 and config.attention is not None:
        raise UserError(
            f"tensor_parallel is {processes}, but the plan does not know how to split the attention "
            f"{config.attention!r}: give 1."
        )
    sizes = split_sizes(config)
    if any(size % processes for size in sizes.values()):
        common = math.gcd(*sizes.values())
        fitting = [number for number in range(1, common + 1) if common % number == 0]
        splits = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise UserError(
            f"tensor_parallel is {processes}, which does not divide what is split ({splits}): give one of "
            f"{', '.join(map(str, fitting))}."
        )


def split_sizes(config: ModelConfig) -> dict[str, int]:
    """Return what must be divisible by the number of processes."""
    full_width = config.qk_norm == "learned-full-width"
    width = config.num_attention_heads * config.head_dim
    sizes = {"columns of attention": width} if full_width else {"key-value heads": config.num_key_value_heads}
    if any(not kind.experts for kind in config.layers):
        sizes["inner features"] = config.intermediate_size
    if config.experts is not None:
        sizes["experts"] = config.experts.number
        if config.experts.shared_width:
            sizes["inner features of the shared expert"] = config.experts.shared_width
    return sizes


def sharded_dimension(shape: tuple[int, ...], shards: int) -> int:
    """Return the dimension in which a parameter is sharded over groups of processes.

    PyTorch shards the first one unevenly where it must, and others evenly alone. Experts are the first dimension of
    their matrices, and few, so that their rows are sharded where that is possible.
    """
    return 1 if len(shape) == 3 and shape[1] % shards == 0 else 0
