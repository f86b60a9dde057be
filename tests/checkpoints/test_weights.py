from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anyorder.checkpoints import save_model, weights
from anyorder.checkpoints.weights import Checkpoint, resolve_device, resolve_dtype
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def checkpoint_of(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Checkpoint:
    return Checkpoint(
        path=Path("somewhere"),
        config=config,
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes={name: tensor.dtype for name, tensor in tensors.items()},
        read=lambda name: tensors[name].detach().clone(),
    )


def load(config: ModelConfig, tensors: Mapping[str, Tensor], dtype: str = "auto") -> Llama:
    return weights.load(checkpoint_of(config, tensors), dtype=dtype, device="cpu", backend="auto")


@pytest.fixture
def tensors(tiny_config: ModelConfig) -> dict[str, Tensor]:
    return dict(Llama(tiny_config).state_dict())


def test_every_tensor_arrives(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    model = load(tiny_config, tensors)
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("stored_twice", [False, True])
def test_a_tied_head_stays_tied(tiny_config: ModelConfig, stored_twice: bool) -> None:
    config = tiny_config.replace(tie_word_embeddings=True)
    tensors = dict(Llama(config).state_dict())
    if not stored_twice:
        del tensors[HEAD]
    model = load(config, tensors, dtype="float64")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_dtypes(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    assert load(tiny_config, tensors).dtype == torch.float32
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert {parameter.dtype for parameter in load(tiny_config, half).parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in load(tiny_config, half, "float64").parameters()} == {torch.float64}
    # Mixed: nothing is lost.
    half["model.norm.weight"] = tensors["model.norm.weight"]
    assert {parameter.dtype for parameter in load(tiny_config, half).parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["int8", "float", "", torch.int64])
def test_unknown_dtype(dtype: str | torch.dtype) -> None:
    with pytest.raises(UserError, match=r"dtype is .*: give 'auto' or one of 'float64', 'float32', 'bfloat16'"):
        resolve_dtype(dtype)


def test_known_dtypes() -> None:
    assert resolve_dtype("bfloat16") == resolve_dtype("torch.bfloat16") == resolve_dtype(torch.bfloat16)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "xpu:7"])
def test_unknown_device(device: str) -> None:
    with pytest.raises(UserError, match=rf"device '{device}' is not available here: give 'auto', 'cpu' or 'cuda'"):
        resolve_device(device)


def test_missing_tensors(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    del tensors[HEAD]
    with pytest.raises(UserError, match=r"checkpoint 'somewhere' lacks tensor 'lm_head.weight': complete it"):
        load(tiny_config, tensors)
    with pytest.raises(UserError, match=r"lacks tensors 'model.embed_tokens.weight', .* and 18 more: complete it"):
        load(tiny_config, {})


def test_unexpected_tensors(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    with pytest.raises(UserError, match=r"has tensor 'model.layers.0.self_attn.q_proj.bias' that the network does not"):
        load(tiny_config, tensors)


def test_a_shape_that_disagrees(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    tensors[EMBEDDING] = torch.zeros(127, 64)
    with pytest.raises(
        UserError, match=rf"'{EMBEDDING}' in 'somewhere' has shape \[127, 64\], .* asks for \[128, 64\]"
    ):
        load(tiny_config, tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite(
    tiny_config: ModelConfig, tensors: dict[str, Tensor], value: float, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    with pytest.raises(UserError, match=r"'model.layers.1.mlp.up_proj.weight' in 'somewhere' holds NaN or infinity"):
        load(tiny_config, tensors)


def test_a_weight_that_does_not_fit(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    tensors[HEAD][0, 0] = 1e6
    with pytest.raises(
        UserError, match=r"'lm_head.weight' in 'somewhere' is too large for torch.float16: give a wider"
    ):
        load(tiny_config, tensors, "float16")


def test_tied_tensors_that_differ(tiny_config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=rf"'{EMBEDDING}' and '{HEAD}' .* differ, .* set tie_word_embeddings to false"):
        load(tiny_config.replace(tie_word_embeddings=True), tensors)


PEAK = """
import sys
import torch
from anyorder.checkpoints import load_model
torch.set_num_threads(1)
for path in sys.argv[1:]:
    load_model(path, device="cpu")
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")))
"""
"""Loads checkpoints one after another and prints the most memory, in bytes, that the process has had so far."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's record of the most memory in use")
@pytest.mark.parametrize("experts", [None, Experts(number=4, chosen=1, width=672, normalise=True)])
def test_loading_needs_little_more_than_the_weights(
    experts: Experts | None, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    # A large vocabulary: the embedding and the head are a fifth of the weights each.
    big = ModelConfig(
        vocab_size=10_000, hidden_size=1024, intermediate_size=2688 if experts is None else experts.width,
        num_hidden_layers=3, num_attention_heads=8, rotary=Rotary(theta=10_000.0), experts=experts,
    )  # fmt: skip
    with torch.device("meta"):
        model = Llama(big)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert size > 200e6
    save_model(Llama(tiny_config), tmp_path / "tiny")
    save_model(model, tmp_path / "whole")
    save_model(model, tmp_path / "sharded", max_shard_size=50_000_000)

    paths = [str(tmp_path / name) for name in ("tiny", "whole", "sharded")]
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    libraries, *peaks = map(int, done.stdout.split())
    assert [peak - libraries < 1.2 * size for peak in peaks] == [True, True], (libraries, peaks, size)


def test_loading_leaves_the_compiler_alone(tiny_config: ModelConfig, tmp_path: Path) -> None:
    # Its import takes longer than reading a small network.
    save_model(Llama(tiny_config), tmp_path / "tiny")
    program = "import sys; from anyorder.checkpoints import load_model; load_model(sys.argv[1])"
    check = "sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", f"{program}; {check}", str(tmp_path / "tiny")], check=True)


def test_what_cannot_be_had_is_refused_before_weights_are_read(
    tiny_config: ModelConfig, tensors: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_read", lambda *_: pytest.fail("a weight was read"))
    for attention, message in (("nonsense", "attention is 'nonsense': choose"), ("flash", "runs on cuda, not on cpu")):
        with pytest.raises(UserError, match=message):
            weights.load(checkpoint_of(tiny_config, tensors), dtype="auto", device="cpu", backend=attention)
    with pytest.raises(UserError, match=r"^device 'meta' is not available here"):
        weights.resolve_device("meta")
