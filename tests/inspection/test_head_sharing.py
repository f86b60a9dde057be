"""MHA, GQA and MQA versions of a network: sizes, and that time is taken of the right thing."""

from __future__ import annotations

import pytest
import torch

from anyorder.inspection import head_sharing
from anyorder.inspection.head_sharing import HeadSharing, compare_head_sharing
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", [None, "GQA"])
def test_sizes(tiny_config: ModelConfig, dtype: torch.dtype, attention: str | None) -> None:
    compared = compare_head_sharing(tiny_config.replace(attention=attention), dtype, CPU, timed=False)
    expected = []
    for kv_heads, layout in ((4, "MHA"), (2, "GQA"), (1, "MQA")):
        model = Llama(tiny_config.replace(num_key_value_heads=kv_heads)).to(dtype)
        cache = model.new_cache(1, 9)
        kept = sum(layer.keys[:, :9].nbytes + layer.values[:, :9].nbytes for layer in cache.layers)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        expected.append(HeadSharing(kv_heads=kv_heads, layout=layout, parameters=parameters, cache_bytes=kept // 9))
    assert compared == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "attention_bias": True, "qk_norm": "learned"},
        {"layers": (LayerKind(window=4), LayerKind(rotary=False))},
        {"rotary": DynamicRotary(theta=1e4, factor=2.0, original_max_position_embeddings=64)},
    ],
    ids=["plain", "biases and norms", "window", "dynamic"],
)  # fmt: skip
def test_time_is_taken(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]) -> None:
    monkeypatch.setattr(head_sharing, "SECONDS_EACH", 0.0)
    compared = compare_head_sharing(tiny_config.replace(**changes), torch.float32, CPU)
    assert all(version.seconds is not None and version.seconds > 0 for version in compared)


def test_the_token_sees_the_whole_context(tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_sharing, "SECONDS_EACH", 0.0)
    seen = []
    plain = Llama.prepare

    def prepare(self: Llama, *args: object, **options: object) -> object:
        views = plain(self, *args, **options)  # type: ignore[arg-type]
        seen.append((self.config.num_key_value_heads, next(iter(views.values())).extent))
        return views

    monkeypatch.setattr(Llama, "prepare", prepare)
    compare_head_sharing(tiny_config, torch.float32, CPU)
    assert seen[:6] == [(4, 64), (2, 64), (1, 64)] * 2, "versions take turns"


def test_memory(tiny_config: ModelConfig) -> None:
    needed = head_sharing.bytes_to_time(tiny_config, torch.float32)
    networks = [Llama(version) for version in head_sharing.versions(tiny_config)]
    heads = [
        sum(weight.nbytes for name, weight in network.named_parameters() if "k_proj" in name or "v_proj" in name)
        for network in networks
    ]
    caches = sum(head_sharing.cache_bytes(network.config, torch.float32) for network in networks) * 64
    assert needed == sum(weight.nbytes for weight in networks[0].parameters()) + sum(heads[1:]) + caches
    assert head_sharing.free_bytes(CPU) > 2**20
