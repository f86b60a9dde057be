"""The published samplers of masked diffusion again, written from their formulas: slow, one row at a time.

Every step runs the whole network on the whole canvas and takes a softmax over the vocabulary at all of its positions;
the caches of Fast-dLLM are lists of keys and values that a pass is handed. Nothing here is shared with the package but
the weights of a network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anyorder.model.llama import Llama

Scores = Callable[[list[int]], Tensor]
"""Logits `[length, vocabulary]` of a canvas, those at position i being of the token at position i."""

Keys = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, each `[heads, positions, head_dim]`."""


class Network:
    """Llama without the causal mask: plain matrices, one row, no padding but what `hidden` hides."""

    def __init__(self, model: Llama, shifted: bool = False) -> None:
        self.weights = {name: weight.detach() for name, weight in model.state_dict().items()}
        self.config = model.config
        self.shifted = shifted

    def __call__(self, ids: list[int]) -> Tensor:
        return self.align(self.run(ids, range(len(ids)))[0])

    def padded(self, pads: int) -> Scores:
        """The same network on a row that is padded on the left: padding is hidden, and counts in positions."""

        def scores(ids: list[int]) -> Tensor:
            filled = [0] * pads + ids
            return self.align(self.run(filled, range(len(filled)), hidden=pads)[0][pads:])

        return scores

    def align(self, logits: Tensor) -> Tensor:
        """Moved to the right by one where the network is shifted; the first position keeps its own."""
        return torch.cat((logits[:1], logits[:-1])) if self.shifted else logits

    def run(
        self, ids: Sequence[int], positions: Sequence[int], past: Keys | None = None, hidden: int = 0
    ) -> tuple[Tensor, Keys]:
        """Logits of rows, and all keys: `past` ones, with those of `positions` replaced by the rows' own."""
        config, weights = self.config, self.weights
        dim, shared = config.head_dim, config.num_attention_heads // config.num_key_value_heads
        inverse = config.rotary.theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.tensor(list(positions), dtype=torch.float64).unsqueeze(1) * inverse
        cos, sin = (
            f(torch.cat((angle, angle), 1)).to(weights["model.norm.weight"].dtype) for f in (torch.cos, torch.sin)
        )

        def norm(x: Tensor, name: str) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * weights[f"{name}.weight"]

        def heads(x: Tensor, name: str, rotate: bool) -> Tensor:
            out = F.linear(x, weights[f"{name}.weight"]).unflatten(1, (-1, dim)).transpose(0, 1)
            turned = torch.cat((-out[..., dim // 2 :], out[..., : dim // 2]), -1)
            return out * cos + turned * sin if rotate else out

        rows = weights["model.embed_tokens.weight"][list(ids)]
        keys: Keys = []
        for number in range(config.num_hidden_layers):
            layer = f"model.layers.{number}"
            x = norm(rows, f"{layer}.input_layernorm")
            q, k, v = (heads(x, f"{layer}.self_attn.{name}_proj", name != "v") for name in "qkv")
            if past is not None:
                old_k, old_v = (side.clone() for side in past[number])
                old_k[:, list(positions)], old_v[:, list(positions)] = k, v
                k, v = old_k, old_v
            keys.append((k, v))
            scores = q @ k.repeat_interleave(shared, 0).transpose(1, 2) / math.sqrt(dim)
            scores[:, :, :hidden] = -torch.inf
            out = (scores.softmax(-1) @ v.repeat_interleave(shared, 0)).transpose(0, 1).flatten(1)
            rows = rows + F.linear(out, weights[f"{layer}.self_attn.o_proj.weight"])
            x = norm(rows, f"{layer}.post_attention_layernorm")
            gate, up = (F.linear(x, weights[f"{layer}.mlp.{name}_proj.weight"]) for name in ("gate", "up"))
            rows = rows + F.linear(F.silu(gate) * up, weights[f"{layer}.mlp.down_proj.weight"])
        head = weights["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
        return F.linear(norm(rows, "model.norm"), head), keys


def surest(confidence: dict[int, float], count: int) -> list[int]:
    """So many positions with the highest confidence; of equals the lowest."""
    return sorted(confidence, key=lambda position: (-confidence[position], position))[:count]


def transfer_counts(masks: int, steps: int) -> list[int]:
    """How many tokens each step of a block writes."""
    return [masks // steps + (1 if step < masks % steps else 0) for step in range(steps)]


def llada(
    scores: Scores,
    canvas: Sequence[int],
    start: int,
    mask: int,
    *,
    steps: int,
    block_length: int,
    cfg_scale: float = 0.0,
    uniform: Callable[[], Tensor] | None = None,
    no_end: Sequence[int] = (),
    unsure_end: Sequence[int] = (),
) -> list[int]:
    """LLaDA's script from position `start` on, at temperature 0.

    Args:
        canvas: with the mask token where a token is to be written.
        uniform: draws the confidence of each candidate, in order ("random"); unless given it is the probability.
        no_end: tokens that are suppressed before the argmax.
        unsure_end: tokens that are suppressed in the confidence.
    """
    x, given = list(canvas), [token != mask for token in canvas]
    blocks = (len(canvas) - start) // block_length
    for block in range(blocks):
        low, high = start + block * block_length, start + (block + 1) * block_length
        counts = transfer_counts(x[low:high].count(mask), steps // blocks)
        for count in counts:
            logits = scores(x)
            if cfg_scale > 0:
                free = scores([mask if fixed else token for token, fixed in zip(x, given, strict=True)])
                logits = free + (cfg_scale + 1) * (logits - free)
            for token in no_end:
                logits[:, token] = -torch.inf
            best = logits.argmax(-1).tolist()
            for token in unsure_end:
                logits[:, token] = -torch.inf
            probability = logits.softmax(-1)
            candidates = [i for i in range(high) if x[i] == mask]
            if uniform is None:
                confidence = {i: float(probability[i, best[i]]) for i in candidates}
            else:
                confidence = {i: float(uniform()) for i in candidates}
            for i in surest(confidence, count):
                x[i] = best[i]
    return x


def dream(
    scores: Scores, canvas: Sequence[int], mask: int, *, steps: int, algorithm: str, top_p: float | None = None,
    top_k: int | None = None, eps: float = 1e-3,
) -> list[int]:  # fmt: skip
    """Dream's sampler at temperature 0, with the count of the row alone."""
    x = list(canvas)
    time = torch.linspace(1, eps, steps + 1)
    for step in range(steps):
        candidates = [i for i in range(len(x)) if x[i] == mask]
        logits = scores(x)
        confidence, best = {}, {}
        for i in candidates:
            order = sorted(range(logits.shape[1]), key=lambda token: -float(logits[i, token]))
            kept = list(order)
            if top_p is not None:
                probability = logits[i].softmax(-1)
                kept = [t for n, t in enumerate(order) if float(probability[order[:n]].sum()) <= top_p]
            if top_k is not None:
                kept = kept[:top_k]
            filtered = torch.full_like(logits[i], -torch.inf)
            filtered[kept] = logits[i, kept]
            probability = filtered.softmax(-1)
            best[i] = order[0]
            ordered = probability.sort(descending=True).values
            confidence[i] = {
                "maskgit_plus": float(ordered[0]),
                "topk_margin": float(ordered[0] - ordered[1]),
                "entropy": float((probability * torch.log(probability + 1e-10)).sum()),
            }[algorithm]
        count = len(candidates) if step == steps - 1 else int(len(candidates) * (1 - time[step + 1] / time[step]))
        for i in surest(confidence, count):
            x[i] = best[i]
    return x


def fast_dllm(
    network: Network,
    canvas: Sequence[int],
    start: int,
    mask: int,
    *,
    block_length: int,
    steps: int | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    cache: str = "none",
) -> list[int]:
    """Fast-dLLM's decoding at temperature 0, with the factor's published behaviour at the end of a block."""
    x = list(canvas)
    blocks = (len(canvas) - start) // block_length
    for block in range(blocks):
        low, high = start + block * block_length, start + (block + 1) * block_length
        counts = transfer_counts(block_length, steps // blocks) if steps else []
        past: Keys | None = None
        step = 0
        while mask in x[low:high]:
            if cache == "none" or past is None:
                logits, past = network.run(x, range(len(x)))
            else:
                rows = range(low, len(x) if cache == "prefix" else high)
                fresh, past = network.run(x[rows.start : rows.stop], rows, past)
                logits = torch.full((len(x), fresh.shape[1]), torch.nan)
                logits[rows.start : rows.stop] = fresh
            probability = logits.softmax(-1)
            candidates = [i for i in range(low, high) if x[i] == mask]
            best = {i: int(logits[i, :mask].argmax()) for i in candidates}
            confidence = {i: float(probability[i, best[i]]) for i in candidates}
            order = surest(confidence, len(candidates))
            if threshold is not None:
                count = max(1, sum(confidence[i] > threshold for i in order))
            elif factor is not None:
                limits = [-1.0] + [1 - factor / (n + 1) for n in range(2, len(order) + 1)]
                fails = [n for n, i in enumerate(order) if confidence[i] < limits[n]]
                at = fails[0] if fails else len(order) - 1
                count = at + 1 if at in (0, len(order) - 1) else at
            else:
                count = counts[step]
            for i in order[:count]:
                x[i] = best[i]
            step += 1
    return x


def edited(
    scores: Scores, canvas: Sequence[int], start: int, mask: int, *, block_length: int, threshold: float, edit: float
) -> list[int]:
    """Threshold decoding whose written tokens of the block are replaced by others that are likelier than `edit`."""
    x = list(canvas)
    for low in range(start, len(x), block_length):
        block, given = range(low, low + block_length), [i for i in range(len(x)) if canvas[i] != mask]
        after_the_last_mask = 0
        while after_the_last_mask <= 16:
            probability = scores(x).softmax(-1)
            best = {i: int(probability[i, :mask].argmax()) for i in block}
            sure = {i: float(probability[i, best[i]]) for i in block}
            own = {i: sure[i] / (1 - float(probability[i, mask])) for i in block}  # where the mask is no choice
            masked = [i for i in block if x[i] == mask]
            written = [i for i in masked if sure[i] > threshold] or surest({i: sure[i] for i in masked}, 1)
            written += [i for i in block if i not in given + masked and best[i] != x[i] and own[i] > edit]
            for i in written:
                x[i] = best[i]
            if all(x[i] != mask for i in block):
                after_the_last_mask += 1
                if not written:
                    break
    return x
