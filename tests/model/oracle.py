"""The whole network again for one sample, slow and obvious: no cache, no batch, no kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama

Sees = Callable[[LayerKind, int, int], bool]
"""Whether, in layers of this kind, a row sees a key; both by their number."""

Weigh = Callable[[Tensor, int, list[int]], Tensor]
"""From the scores of a row towards the keys that it sees, with the numbers of row and keys, to their shares."""


def softmax(scores: Tensor, row: int, keys: list[int]) -> Tensor:
    return scores.softmax(0)


def oracle_logits(
    model: Llama, ids: Sequence[int], position: Sequence[float], sees: Sees, n_keys: int, weigh: Weigh = softmax,
    queries: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`[rows, vocabulary]`: each row looks at those of the first `n_keys` rows that `sees` shows it.

    `queries`, `[more rows, hidden]`, are rows behind those of the ids.
    """
    config = model.config
    weights = {name: weight.detach().double() for name, weight in model.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        out = x @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    def norm(x: Tensor, name: str) -> Tensor:
        return rms(x) * weights[f"{name}.weight"]

    def rms(x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt()

    def turn(head: Tensor, kind: LayerKind) -> Tensor:
        """Frequency f of a head is the complex number of its entries f and f + head_dim / 2."""
        half = config.head_dim // 2
        rotary = config.rotary if isinstance(kind.rotary, bool) else kind.rotary
        angle = torch.tensor(position, dtype=torch.float64).unsqueeze(1) * rotary.frequencies(config.head_dim)
        turned = torch.complex(head[:, :half], head[:, half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), 1)

    rows = weights["model.embed_tokens.weight"][list(ids)]
    rows = rows if queries is None else torch.cat((rows, queries.double()))
    shared = config.num_attention_heads // config.num_key_value_heads
    for number, kind in enumerate(config.layers):
        layer = f"model.layers.{number}"
        x = norm(rows, f"{layer}.input_layernorm")
        q, k, v = (linear(x, f"{layer}.self_attn.{name}_proj").split(config.head_dim, 1) for name in "qkv")
        heads = []
        for head in range(config.num_attention_heads):
            query, key, value = q[head], k[head // shared], v[head // shared]
            if config.qk_norm == "learned":
                query, key = norm(query, f"{layer}.self_attn.q_norm"), norm(key, f"{layer}.self_attn.k_norm")
            if kind.rotary:
                query, key = turn(query, kind), turn(key, kind)
            if config.qk_norm == "weightless" and kind.rotary:
                query, key = rms(query), rms(key)
            out = torch.zeros_like(query)
            for row in range(len(rows)):
                visible = [other for other in range(n_keys) if sees(kind, row, other)]
                if visible:
                    scores = query[row] @ key[visible].T / config.head_dim**0.5
                    out[row] = weigh(scores, row, visible) @ value[visible]
            heads.append(out)
        rows = rows + linear(torch.cat(heads, 1), f"{layer}.self_attn.o_proj")
        x = norm(rows, f"{layer}.post_attention_layernorm")
        gate, up = linear(x, f"{layer}.mlp.gate_proj"), linear(x, f"{layer}.mlp.up_proj")
        rows = rows + linear(gate * torch.sigmoid(gate) * up, f"{layer}.mlp.down_proj")
    return norm(rows, "model.norm") @ weights["lm_head.weight"].T


def narrowed(kind: LayerKind, query: int, key: int) -> bool:
    """Whether a layer of this kind lets the position `query` see the position `key` at all."""
    if kind.window is not None and query - key >= kind.window:
        return False
    return kind.chunk is None or query // kind.chunk == key // kind.chunk
