"""Meta's folders of Llama 4, with experts and vision: names, numbers of shards, and what is wrong with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anyorder.checkpoints import load_model, read_checkpoint, save_model
from anyorder.checkpoints.meta_names import OF_DENSE, OF_EXPERTS, OF_LAYER, OF_NETWORK, OF_VISION, OF_VISION_LAYER
from anyorder.errors import UserError
from anyorder.model.experts import Experts
from anyorder.model.llama import Llama
from tests.checkpoints.metas_llama4 import network, tensors, write
from tests.checkpoints.test_meta import assert_same_weights, change
from tests.checkpoints.test_weights import PEAK

ROUTER = "layers.1.feed_forward.router_DE"
GATE = "layers.1.feed_forward.experts.moe_w_in_eD_F"


@pytest.fixture(scope="module")
def model() -> Llama:
    torch.manual_seed(0)
    return network()


@pytest.mark.parametrize("form", ["released", "modules"])
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_every_tensor_comes_back(model: Llama, tmp_path: Path, shards: int, form: str) -> None:
    # With eight shards there are more than key-value heads.
    loaded = load_model(write(model, tmp_path / "llama", shards, form), device="cpu")
    assert_same_weights(loaded, model)
    assert loaded.config == model.config.replace(initializer_range=loaded.config.initializer_range)


def test_the_tables_are_what_metas_files_hold(model: Llama) -> None:
    vision = "vision_embeddings.vision_encoder.transformer.resblocks.0."
    expected = {
        *OF_NETWORK, *OF_VISION, *(f"{vision}{name}" for name in OF_VISION_LAYER),
        *(f"layers.0.{name}" for name in (*OF_LAYER, *OF_DENSE)),
        *(f"layers.1.{name}" for name in (*OF_LAYER, *OF_EXPERTS)),
    }  # fmt: skip
    others = ("layers.2.", "layers.3.", vision.replace("0", "1"))
    assert {name for name in tensors(model) if not name.startswith(others)} == expected


def test_a_network_of_experts_alone_has_the_dense_width_of_metas_code(model: Llama, tmp_path: Path) -> None:
    experts = tuple(kind.__class__(**(vars(kind) | {"experts": True})) for kind in model.config.layers)
    alone = network(layers=experts)
    args = {"num_experts": 3, "interleave_moe_layer_step": 1}
    config = read_checkpoint(write(alone, tmp_path / "llama", moe_args=args)).config
    assert config.intermediate_size == 2048  # int(int(2 * 4 * 64 / 3) * 1.2), rounded up to multiple_of
    assert config.layers == experts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({ROUTER: None}, r"lacks tensors '.*w1', .*: complete it, or mend n_layers, moe_args, vision_args in "),
        ({GATE: None}, r"lacks tensor 'layers.1.feed_forward.experts.w1': complete it"),
        ({GATE: torch.ones(7, 16)}, r"tensor '.*experts.w1' in '.*00.pth' has shape \[7, 16\]: fetch it again"),
        ({GATE: torch.ones(96, 16)}, r"down_proj|gate_up_proj' in .* has shape"),
        ({"layers.1.feed_forward.expert_bias": torch.ones(3)}, r"has tensor '.*expert_bias' that the network does not"),
        ({"vision_embeddings.vision_encoder.positional_embedding": torch.ones(17, 32)}, r"has tensor '.*positional"),
        ({"vision_projection.weight": torch.ones(24, 64)}, r"linear_1.weight' in .* has shape \[24, 64\], but the"),
        ({GATE: torch.ones(192, 16, dtype=torch.int8)}, r"eD_F' in '.*' is stored as int8: store it as"),
    ],
)  # fmt: skip
def test_tensors_that_are_wrong(model: Llama, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = write(model, tmp_path / "llama")
    content = torch.load(folder / "consolidated.00.pth", weights_only=False) | changes
    torch.save({name: value for name, value in content.items() if value is not None}, folder / "consolidated.00.pth")
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_shards_that_do_not_fit_each_other(model: Llama, tmp_path: Path) -> None:
    folder = write(model, tmp_path / "llama", 2, "modules")
    (folder / "consolidated.01.pth").rename(tmp_path / "01")
    with pytest.raises(UserError, match=r"has 1 of 2 files of weights, as the 32 rows of"):
        load_model(folder)
    (tmp_path / "01").rename(folder / "consolidated.01.pth")
    change(folder / "consolidated.01.pth", **{"layers.1.feed_forward.experts.w1": torch.ones(3, 64, 4)})
    with pytest.raises(UserError, match=r"experts.w1' has shape \[3, 8, 64\] in '.*00.pth', but \[3, 4, 64\] in 'cons"):
        load_model(folder)
    change(folder / "consolidated.01.pth", **{"layers.1.feed_forward.experts.w1": None})
    with pytest.raises(UserError, match=r"experts.w1' in only one of '.*00.pth' and 'c.*01.pth': fetch both again"):
        load_model(folder)


def test_quantised_files_and_small_vocabularies_are_refused(model: Llama, tmp_path: Path) -> None:
    folder = write(model, tmp_path / "llama", vocab_size=2000)
    with pytest.raises(
        UserError, match=r"field 'vocab_size' is 2000 beside vision_args: give the network's vocabulary"
    ):
        load_model(folder)
    (folder / "fp8_scales_0.pt").touch()
    with pytest.raises(
        UserError, match=r"has 'fp8_scales_0.pt', so its weights are quantised: give the weights as they"
    ):
        load_model(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's record of the most memory in use")
def test_loading_needs_little_more_than_the_weights(tmp_path: Path) -> None:
    experts = Experts(number=8, chosen=1, width=1024, score="sigmoid", weighted="input", shared_width=1024)
    big = network(hidden_size=512, intermediate_size=1024, num_key_value_heads=8, experts=experts)
    size = sum(parameter.nbytes for parameter in big.parameters())
    args = {"multiple_of": 256, "moe_args": {"num_experts": 8, "interleave_moe_layer_step": 2}}
    places = [write(network(), tmp_path / "tiny"), *(write(big, tmp_path / f"{n}", n, **args) for n in (1, 2))]
    save_model(big, tmp_path / "theirs")
    paths = [*map(str, places), str(tmp_path / "theirs")]
    done = subprocess.run([sys.executable, "-c", PEAK, *paths], capture_output=True, text=True, check=True)
    libraries, *peaks = map(int, done.stdout.split())
    assert [peak - libraries < 1.2 * size for peak in peaks] == [True] * 3, (libraries, peaks, size)
