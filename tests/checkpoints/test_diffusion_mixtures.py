"""LLaDA-MoE and LLaDA2 against slow networks that are written here from their published descriptions.

The samplers are written out, too, each pass over the whole text up to the block, without a cache.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyorder
from anyorder.checkpoints import load_model, save_model
from anyorder.checkpoints.config_json import config_from_json
from anyorder.errors import UserError
from anyorder.model.modes import blocks, diffusion

Json = dict[str, Any]

HEADS, KV_HEADS, HIDDEN, VOCABULARY, MASK, BLOCK = 4, 2, 16, 40, 39, 4

SIZES: Json = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "max_position_embeddings": 64, "rope_theta": 500.0, "rope_scaling": None,
    "eos_token_id": 38, "pad_token_id": 38, "mask_token_id": MASK, "num_experts": 8, "num_experts_per_tok": 3,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip

LLADA_MOE: Json = SIZES | {
    "model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "dense_intermediate_size": 20, "rms_norm_eps": 1e-5,
    "expert_intermediate_size": 6, "shared_expert_intermediate_size": None, "moe_layer_freq": [0, 1, 1],
    "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": True, "routed_scaling_factor": 1.0,
    "qk_layernorm": True, "partial_rotary_factor": 1.0, "clip_qkv": None,
}  # fmt: skip

LLADA2: Json = SIZES | {
    "model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"], "intermediate_size": 20, "head_dim": 8,
    "moe_intermediate_size": 6, "num_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
    "routed_scaling_factor": 2.5, "norm_topk_prob": True, "score_function": "sigmoid", "rms_norm_eps": 1e-6,
    "moe_router_enable_expert_bias": True, "partial_rotary_factor": 0.5, "use_bias": True, "use_qkv_bias": False,
    "norm_head": False, "block_size": BLOCK, "sliding_window": 4096,
}  # fmt: skip


def tensors_of(fields: Json) -> dict[str, Tensor]:
    """Random tensors under the published names."""
    new = fields["model_type"] == "llada2_moe"
    width, head = HIDDEN, fields.get("head_dim", HIDDEN // HEADS)
    expert = fields["moe_intermediate_size" if new else "expert_intermediate_size"]
    dense = fields["intermediate_size" if new else "dense_intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight" if new else "model.embed_tokens.weight": (VOCABULARY, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (VOCABULARY, width),
    }
    for layer in range(3):
        q, kv = HEADS * head, KV_HEADS * head
        names: dict[str, tuple[int, ...]] = (
            {
                "attention.query_key_value": (q + 2 * kv, width), "attention.dense": (width, q),
                "attention.query_layernorm": (head,), "attention.key_layernorm": (head,),
            }
            if new
            else {
                "self_attn.q_proj": (q, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
                "self_attn.o_proj": (width, q), "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
            }
        )  # fmt: skip
        names |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        places = {"mlp": dense} if layer == 0 else {f"mlp.experts.{number}": expert for number in range(8)}
        if layer and new:
            places["mlp.shared_experts"] = expert
        if layer:
            names["mlp.gate"] = (8, width)
            shapes[f"model.layers.{layer}.mlp.gate.expert_bias"] = (8,)
        for place, inner in places.items():
            names |= {f"{place}.gate_proj": (inner, width), f"{place}.up_proj": (inner, width)}
            names[f"{place}.down_proj"] = (width, inner)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.4 * torch.randn(shape, generator=generator) + (1.0 if "norm" in name else 0.0)
        for name, shape in shapes.items()
    }


class Literal:
    """The whole network again, row by row in float64, from the published tensors."""

    def __init__(self, fields: Json, tensors: dict[str, Tensor], block_length: int | None) -> None:
        self.fields, self.block_length = fields, block_length
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        self.new = fields["model_type"] == "llada2_moe"

    def __call__(self, ids: list[int]) -> Tensor:
        """`[length, vocabulary]`."""
        rows = self["model.word_embeddings" if self.new else "model.embed_tokens"][ids]
        for layer in range(3):
            place = f"model.layers.{layer}"
            rows = rows + self.attention(place, self.norm(rows, f"{place}.input_layernorm"))
            normed = self.norm(rows, f"{place}.post_attention_layernorm")
            mixture = self.swiglu(f"{place}.mlp", normed) if layer == 0 else self.mixture(f"{place}.mlp", normed)
            rows = rows + mixture
        return self.norm(rows, "model.norm") @ self["lm_head"].T

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"{name}.weight"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + self.fields["rms_norm_eps"]).sqrt() * self[name]

    def swiglu(self, place: str, x: Tensor) -> Tensor:
        gate, up = x @ self[f"{place}.gate_proj"].T, x @ self[f"{place}.up_proj"].T
        return (gate * gate.sigmoid() * up) @ self[f"{place}.down_proj"].T

    def mixture(self, place: str, rows: Tensor) -> Tensor:
        return torch.stack([self.mixture_of_row(place, row) for row in rows])

    def mixture_of_row(self, place: str, x: Tensor) -> Tensor:
        logits, bias = self[f"{place}.gate"] @ x, self.tensors[f"{place}.gate.expert_bias"]
        if self.new:
            score = logits.sigmoid()
            biased = (score + bias).tolist()
            best = sorted(range(4), key=lambda group: -sum(sorted(biased[2 * group : 2 * group + 2])[-2:]))[:2]
            allowed = [expert for group in best for expert in (2 * group, 2 * group + 1)]
            chosen = sorted(allowed, key=lambda expert: -biased[expert])[:3]
            total = sum(float(score[expert]) for expert in chosen) + 1e-20
            weight = {expert: float(score[expert]) / total * 2.5 for expert in chosen}
        else:
            biased = (logits.softmax(0) + bias).tolist()
            chosen = sorted(range(8), key=lambda expert: -biased[expert])[:3]
            weight = {expert: biased[expert] for expert in chosen}
        out = sum(weight[expert] * self.swiglu(f"{place}.experts.{expert}", x) for expert in chosen)
        assert isinstance(out, Tensor)
        return out + self.swiglu(f"{place}.shared_experts", x) if self.new else out

    def attention(self, place: str, x: Tensor) -> Tensor:
        head = self.fields.get("head_dim", HIDDEN // HEADS)
        if self.new:
            joined = x @ self[f"{place}.attention.query_key_value"].T
            q, k, v = joined.split([HEADS * head, KV_HEADS * head, KV_HEADS * head], 1)
            norms, out = ("query_layernorm", "key_layernorm"), f"{place}.attention.dense"
            place = f"{place}.attention"
        else:
            place = f"{place}.self_attn"
            q, k, v = (x @ self[f"{place}.{name}_proj"].T for name in "qkv")
            norms, out = ("q_norm", "k_norm"), f"{place}.o_proj"
        heads = []
        for number in range(HEADS):
            shared = number // (HEADS // KV_HEADS)
            query = self.turned(self.norm(q[:, number * head : (number + 1) * head], f"{place}.{norms[0]}"))
            key = self.turned(self.norm(k[:, shared * head : (shared + 1) * head], f"{place}.{norms[1]}"))
            scores = query @ key.T / math.sqrt(head)
            if self.block_length is not None:
                block = torch.arange(len(x)) // self.block_length
                scores = scores.masked_fill(block[:, None] < block[None, :], -math.inf)
            heads.append(scores.softmax(1) @ v[:, shared * head : (shared + 1) * head])
        return torch.cat(heads, 1) @ self[out].T

    def turned(self, x: Tensor) -> Tensor:
        """The first dimensions in two halves, by the angle of each position; the others stay."""
        turning = int(x.shape[1] * self.fields["partial_rotary_factor"])
        half = turning // 2
        speed = 500.0 ** (-2 * torch.arange(half, dtype=torch.float64) / turning)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None] * speed
        one, two = x[:, :half], x[:, half:turning]
        return torch.cat(
            (one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin(), x[:, turning:]), 1
        )


def published(fields: Json, folder: Path) -> dict[str, Tensor]:
    tensors = tensors_of(fields)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


@pytest.mark.parametrize("shards", [None, 3000])
@pytest.mark.parametrize(
    ("fields", "mode", "form"), [(LLADA_MOE, diffusion(MASK), "llada-moe"), (LLADA2, blocks(MASK, BLOCK), "llada2")]
)
def test_networks(fields: Json, mode: Any, form: str, shards: int | None, tmp_path: Path) -> None:
    """Read, and written back to the same names and numbers, in the published form and in ours."""
    tensors = published(fields, tmp_path / "published")
    model = load_model(tmp_path / "published", device="cpu", dtype="float64")
    assert model.config.modes == (mode,)
    ids = torch.randint(VOCABULARY, (11,)).tolist()
    expected = Literal(fields, tensors, mode.block_length)(ids)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], expected, rtol=0, atol=1e-9)
    model = load_model(tmp_path / "published", device="cpu")
    save_model(model, tmp_path / "back", form=form, max_shard_size=shards)
    back = {
        name: tensor for file in (tmp_path / "back").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    for place in ("back", "ours"):
        if place == "ours":
            save_model(model, tmp_path / place)
        again = load_model(tmp_path / place, device="cpu")
        assert again.config == model.config
        assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())


def sampled(
    network: Literal, prompt: list[int], new: int, threshold: float, edit: float | None, end: int
) -> tuple[list[int], int]:
    """The published loop: blocks counted from position 0, all masks that are sure or else the surest, and edits.

    Returns:
        The canvas, and passes.
    """
    x, passes = [*prompt, *[MASK] * new], 0
    for start in range(len(prompt) // BLOCK * BLOCK, len(x), BLOCK):
        block, after = range(start, start + BLOCK), 0
        while True:
            masked = [at for at in block if x[at] == MASK]
            if not masked:
                after += 1
                if edit is None or after > 16:
                    break
            probability = network(x[: start + BLOCK]).softmax(-1)
            passes += 1
            best = {at: int(probability[at, :MASK].argmax()) for at in block}
            sure = {at: float(probability[at, best[at]]) for at in block}
            write = [at for at in masked if sure[at] > threshold]
            if masked and not write:
                write = [max(masked, key=lambda at: sure[at])]
            edits = [
                at for at in block
                if edit is not None and at not in masked and at >= len(prompt) and sure[at] > edit and best[at] != x[at]
            ]  # fmt: skip
            for at in write + edits:
                x[at] = best[at]
            if not masked and not edits:
                break
        if end in x[len(prompt) : start + BLOCK]:
            return x[: x.index(end, len(prompt)) + 1], passes
    return x, passes


@pytest.mark.parametrize("prompt", [[5, 6], [7, 8, 9, 10, 11, 12, 13], [1, 2, 3, 4]])
@pytest.mark.parametrize(("preset", "threshold", "edit"), [("llada2", 0.05, None), ("llada2.1", 0.05, 0.04)])
def test_samplers(preset: str, threshold: float, edit: float | None, prompt: list[int], tmp_path: Path) -> None:
    """Token for token, and in as many passes, over a cache of complete blocks that is exact."""
    tensors = published(LLADA2, tmp_path / "published")
    model = load_model(tmp_path / "published", device="cpu", dtype="float64")
    new = 16 - len(prompt)
    sampler = anyorder.DiffusionSampler.preset(preset, threshold=threshold).replace(edit=edit)
    out = anyorder.generate(model, None, prompt, order=sampler, max_new_tokens=new)
    expected, passes = sampled(Literal(LLADA2, tensors, BLOCK), prompt, new, threshold, edit, end=38)
    assert [*prompt, *out.token_ids] == expected
    assert out.passes == passes
    if edit is not None:  # which changes what is written
        plain, _ = sampled(Literal(LLADA2, tensors, BLOCK), prompt, new, threshold, None, end=38)
        assert plain != expected


def test_presets_have_the_published_numbers() -> None:
    presets = {name: anyorder.DiffusionSampler.preset(name) for name in ("sdar", "llada2", "llada2.1")}
    assert {name: (p.commit.above, p.edit, p.stop_at_end) for name, p in presets.items()} == {  # type: ignore[attr-defined]
        "sdar": (0.85, None, True), "llada2": (0.95, None, True), "llada2.1": (0.95, 0.9, True),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (LLADA_MOE, {"moe_layer_freq": [1, 0]}, "field 'moe_layer_freq' is [1, 0]: give 1 or 0 for each of the 3 "),
        (LLADA_MOE, {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8: this version "),
        (LLADA2, {"n_group": 3}, "experts field 'groups' is 3: give a divisor of the 8 experts."),
        (LLADA2, {"score_function": "softmax"}, "score_function is 'softmax': this version reads networks of LLaDA2 "),
        (LLADA2, {"norm_head": True}, "norm_head is True: this version reads networks of LLaDA2 with False only."),
        (LLADA2, {"num_experts_per_tok": 5}, "experts field 'chosen' is 5: give at most the 4 experts of the groups "),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(fields: Json, changes: Json, message: str) -> None:
    with pytest.raises(UserError) as error:
        config_from_json(fields | changes)
    assert str(error.value).startswith(message)
