"""GGUF files, read back by the package gguf; tests/inspection/test_speed.py lets llama.cpp read one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder.checkpoints import gguf as ours
from anyorder.errors import UserError
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import LinearRotary, rotate
from anyorder.ways import ANY_ORDER, LEFT_TO_RIGHT

gguf = pytest.importorskip("gguf", reason="needs the package gguf")


def read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Fields and tensors of a file."""
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {
        tensor.name: torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        for tensor in reader.tensors
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_read(tiny_config: ModelConfig, tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = Llama(tiny_config.replace(tie_word_embeddings=tied)).to(dtype)
    ours.write(model, tmp_path / "a.gguf")
    fields, tensors = read(tmp_path / "a.gguf")
    c = model.config
    assert {name: fields[f"llama.{name}"] for name in (
        "vocab_size", "context_length", "embedding_length", "feed_forward_length", "block_count",
        "attention.head_count", "attention.head_count_kv", "attention.key_length", "rope.dimension_count",
    )} == {
        "vocab_size": c.vocab_size, "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size, "block_count": 2, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 16, "rope.dimension_count": 16,
    }  # fmt: skip
    assert fields["llama.rope.freq_base"] == c.rotary.theta
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(c.rms_norm_eps)
    assert len(tensors) == len(model.state_dict()) - tied
    weights: dict[str, Any] = {"token_embd": model.model.embed_tokens, "output_norm": model.model.norm}
    if not tied:
        weights["output"] = model.lm_head
    layers: Any = model.model.layers
    for number, layer in enumerate(layers):
        for theirs, module in {
            "attn_norm": layer.input_layernorm, "attn_v": layer.self_attn.v_proj, "attn_output": layer.self_attn.o_proj,
            "ffn_norm": layer.post_attention_layernorm, "ffn_gate": layer.mlp.gate_proj, "ffn_up": layer.mlp.up_proj,
            "ffn_down": layer.mlp.down_proj,
        }.items():  # fmt: skip
            weights[f"blk.{number}.{theirs}"] = module
    assert set(tensors) - {f"{name}.weight" for name in weights} == {
        f"blk.{number}.attn_{which}.weight" for number in (0, 1) for which in "qk"
    }
    for name, written in weights.items():
        torch.testing.assert_close(tensors[f"{name}.weight"], written.weight.detach().float(), rtol=0, atol=0)


def test_queries_and_keys_are_turned_in_pairs_side_by_side(tiny_config: ModelConfig) -> None:
    """What llama.cpp computes from its order, spelled out pair by pair, are our scores."""
    model = Llama(tiny_config).double()
    written = ours.tensors(model)
    cos, sin = tiny_config.rotary.cos_sin(torch.tensor([[5]]), 16, torch.float64)
    row = torch.randn(64, dtype=torch.float64)
    layers: Any = model.model.layers
    attention = layers[0].self_attn
    for name, projection, heads in (("q", attention.q_proj, 4), ("k", attention.k_proj, 2)):
        theirs = (written[f"blk.0.attn_{name}.weight"] @ row).view(heads, 16)
        turned = torch.empty_like(theirs)
        for head in range(heads):
            for f in range(8):
                a, b = theirs[head, 2 * f], theirs[head, 2 * f + 1]
                c, s = cos[0, 0, 0, f], sin[0, 0, 0, f]
                turned[head, f], turned[head, f + 8] = a * c - b * s, b * c + a * s
        expected = rotate(projection(row).view(1, 1, heads, 16), cos, sin)[0, 0]
        torch.testing.assert_close(turned, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotary": LinearRotary(theta=1e4, factor=2.0)}, "rotary is LinearRotary"),
        ({"layers": (LayerKind(), LayerKind(window=4))}, "layers have windows, chunks or no rotary embedding"),
        ({"qk_norm": "learned"}, "qk_norm is 'learned'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"ways": (LEFT_TO_RIGHT, ANY_ORDER)}, "the network writes left-to-right, any-order"),
    ],
)
def test_more_than_a_plain_llama(tiny_config: ModelConfig, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        ours.write(Llama(tiny_config.replace(**changes)), tmp_path / "a.gguf")
    assert str(caught.value) == f"{message}: llama.cpp's Llama is plain, so write a Hugging Face folder instead."
    assert not list(tmp_path.iterdir())


def test_the_place_is_taken(tiny_config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"is there already: give a new name, or delete it first"):
        ours.write(Llama(tiny_config), tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_text() == "mine"


def test_without_the_package(tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"^GGUF files need the package gguf: install it"):
        ours.write(Llama(tiny_config), tmp_path / "a.gguf")
