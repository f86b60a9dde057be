"""Dense networks with experts, and mixtures with fewer of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import anyorder
from anyorder.checkpoints import convert, load_model, save_model
from anyorder.checkpoints.experts import expert_loads, keep_busiest, read_number, to_experts, with_experts
from anyorder.errors import UserError
from anyorder.model.experts import Router, routings_of
from anyorder.model.modes import diffusion
from tests.model.networks import EXPERTS, network, random_ids


@pytest.mark.parametrize("chosen", [1, 3])
@pytest.mark.parametrize("layers", ["plain", "chunk"])
def test_copies_compute_what_one_did(layers: str, chosen: int, tmp_path: Path) -> None:
    """Also saved and loaded, and with gradients for the router, by which copies become different."""
    model = network(layers)
    made = to_experts(model, 4, chosen)
    ids = torch.tensor(random_ids(9, 9))
    torch.testing.assert_close(made(ids).logits, model(ids).logits)
    save_model(made, tmp_path / "made")
    torch.testing.assert_close(load_model(tmp_path / "made", device="cpu")(ids).logits, model(ids).logits)
    for weight in made.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    made(ids, labels=ids).loss.backward()
    routers = [module for module in made.modules() if isinstance(module, Router)]
    assert len(routers) == len(made.model.layers)
    assert all(router.weight.grad is not None and router.weight.grad.any() for router in routers)


def test_two_of_several_are_a_mixtral(tmp_path: Path) -> None:
    save_model(network(), tmp_path / "dense")
    convert(tmp_path / "dense", tmp_path / "mixture", experts="4:2")
    assert '"MixtralForCausalLM"' in (tmp_path / "mixture/config.json").read_text()
    experts = load_model(tmp_path / "mixture").config.experts
    assert experts is not None
    assert experts.chosen == 2


@pytest.mark.parametrize("mode", [None, diffusion(19)])
def test_the_busiest_stay(mode: anyorder.model.modes.Mode | None) -> None:
    """Experts of no row can go without any change; of groups equally many go."""
    model: Any = network("experts", experts=dataclasses.replace(EXPERTS, groups=2, kept_groups=1))
    if mode is not None:
        model.config = model.config.replace(modes=(mode,))
    texts = random_ids(9, 12)
    loads = expert_loads(model, texts)
    assert loads.sum(1).tolist() == [2 * 21] * 2
    fewer = keep_busiest(model, 4, torch.tensor([[0, 5, 1, 5, 9, 1]] * 2))
    name = "model.layers.1.mlp.experts.down_proj"
    assert torch.equal(fewer.get_parameter(name), model.get_parameter(name)[[1, 2, 3, 4]])
    config = model.config.replace(experts=dataclasses.replace(EXPERTS, groups=1, kept_groups=1, chosen=1))
    alone = network("experts", experts=config.experts)
    with routings_of(alone) as found:
        alone(torch.tensor([texts[0]]))
    loads = torch.stack([routing.load for routing in found])
    used = int((loads > 0).sum(1).max())
    kept = keep_busiest(alone, used, loads)
    torch.testing.assert_close(kept(torch.tensor([texts[0]])).logits, alone(torch.tensor([texts[0]])).logits)


def test_what_cannot_be() -> None:
    for given, message in (
        ("a", "experts is 'a': give their number, such as 8, or 8:2 where two read each token."),
        (0, "experts is 0: give their number, such as 8, or 8:2 where two read each token."),
    ):
        with pytest.raises(UserError) as error:
            read_number(given)
        assert str(error.value) == message
    dense, mixture = network(), network("experts")
    for model, experts, text, message in (
        (network(mlp_bias=True), 2, None, "experts is 2, but the feed-forward networks have biases, which experts "),
        (dense, "2:3", None, "experts field 'chosen' is 3: give at most the number of experts, 2."),
        (dense, 2, [1], "expert_sample is given, but the network has no experts to choose from: leave it out."),
        (mixture, 3, None, "experts is 3, and the busiest are kept: give expert_sample, a file of text with a "),
        (mixture, 9, [1], "experts is 9, but the network has 6: give at most as many."),
        (mixture, "3:1", [1], "experts is '3:1', but experts are kept: give 3, as 2 go on reading each token."),
        (mixture, 4, [1], "experts is 4, which this mixture cannot have: experts field 'groups' is 3: give a divisor"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            with_experts(model, experts, text)
        assert str(error.value).startswith(message)


def test_a_sample_of_text(shared_data: Path, tmp_path: Path) -> None:
    """A real network, made into experts, whose busiest are kept; the words go with it."""
    convert(
        shared_data / "stories260K/stories260K.bin", tmp_path / "mixture", experts=4,
        tokenizer=shared_data / "stories260K/tok512.bin",
    )  # fmt: skip
    (tmp_path / "text.txt").write_text("Once upon a time there was a little girl. " * 20, encoding="utf-8")
    with pytest.raises(UserError, match=r"^expert_sample .*none.txt' is no file here: check the path\.$"):
        convert(tmp_path / "mixture", tmp_path / "fewer", experts=2, expert_sample=tmp_path / "none.txt")
    convert(tmp_path / "mixture", tmp_path / "fewer", experts=2, expert_sample=tmp_path / "text.txt")
    model, tokenizer = anyorder.load(tmp_path / "fewer")
    assert model.config.experts is not None
    assert model.config.experts.number == 2
    assert anyorder.generate(model, tokenizer, "Once upon a time", max_new_tokens=8).text
    with pytest.raises(UserError, match=r"^expert_sample is given without experts: "):
        convert(tmp_path / "mixture", tmp_path / "other", expert_sample=tmp_path / "text.txt")
