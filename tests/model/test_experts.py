"""Mixtures of experts: every choice of their data against a loop over rows, and the fast products against the slow."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from anyorder.errors import UserError
from anyorder.model.config import LayerKind
from anyorder.model.experts import (
    Experts,
    MixtureOfExperts,
    balance_loss,
    by_gathering,
    by_groups,
    by_loop,
    routings_of,
)
from anyorder.model.query_scale import QueryScale
from tests.model.networks import EXPERTS, network
from tests.model.oracle import mixture

HIDDEN = 16

KINDS: dict[str, Experts] = {
    "Mixtral": Experts(number=8, chosen=2, width=10, normalise=True),
    "OLMoE": Experts(number=8, chosen=3, width=10),
    "Llama 4": Experts(number=4, chosen=1, width=10, score="sigmoid", weighted="input", shared_width=10),
    "Llama 4, two": Experts(number=4, chosen=2, width=10, score="sigmoid", weighted="input", shared_width=6),
    "LLaDA-MoE": Experts(number=8, chosen=3, width=10, bias="weight"),
    "LLaDA2": dataclasses.replace(EXPERTS, bias="choice"),
    "all of one group": Experts(number=6, chosen=3, width=4, groups=2, kept_groups=1, scale=2.0),
    "all": Experts(number=3, chosen=3, width=4),
}


def mixture_of(experts: Experts) -> MixtureOfExperts:
    """Weights large enough that scores differ, biases among them."""
    module = MixtureOfExperts(experts, HIDDEN)
    for weight in module.parameters():
        weight.data.normal_(0, 0.4)
    return module


def by_oracle(module: MixtureOfExperts, experts: Experts, rows: Tensor) -> Tensor:
    weights = {f"mlp.{name}": weight.detach().double() for name, weight in module.named_parameters()}
    return mixture(rows, experts, "mlp", weights)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", KINDS)
def test_the_mixture_is_a_loop_over_rows(name: str) -> None:
    """Padding within, and in a batch: reads as alone, reaches no expert, and only the shared expert adds to it."""
    experts = KINDS[name]
    module = mixture_of(experts)
    rows = torch.randn(3, 5, HIDDEN)
    expected = by_oracle(module, experts, rows.flatten(0, 1)).view_as(rows)
    torch.testing.assert_close(module(rows), expected, rtol=0, atol=1e-12)
    valid = torch.rand(3, 5) < 0.6
    with routings_of(module) as found:
        some = module(rows, valid)
    torch.testing.assert_close(some[valid], expected[valid], rtol=0, atol=1e-12)
    shared = 0 if module.shared_expert is None else module.shared_expert(rows)[~valid]
    torch.testing.assert_close(some[~valid], torch.zeros_like(some[~valid]) + shared, rtol=0, atol=1e-12)
    assert int(found[0].load.sum()) == int(valid.sum()) * experts.chosen
    order = torch.randperm(15)
    moved = module(rows.flatten(0, 1)[order].unsqueeze(0))[0]
    torch.testing.assert_close(moved, expected.flatten(0, 1)[order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [by_groups, by_gathering])
@pytest.mark.parametrize("padding", [0, 7])
def test_products_are_those_of_the_loop(fast: Any, padding: int) -> None:
    """Forwards and backwards, with an expert that no row reaches; garbage behind the last group harms nothing."""
    experts = [0] * 5 + [2] * 3 + [3] + [4] * padding
    expert_P = torch.tensor(experts)
    made: list[list[Tensor]] = []
    for compute in (by_loop, fast):
        torch.manual_seed(0)
        rows, gate_up, down = torch.randn(len(experts), 16), torch.randn(4, 16, 16), torch.randn(4, 16, 8)
        given = [tensor.requires_grad_() for tensor in (rows, gate_up, down)]
        out = compute(rows, expert_P, gate_up, down)
        made.append([out, *torch.autograd.grad((out * torch.arange(16)).sum(), given)])
    for ours, slow in zip(*reversed(made), strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-5, atol=1e-4)
    assert not made[0][0][len(experts) - padding :].any()
    assert not made[0][2][1].any()
    assert not made[0][3][1].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, which this machine has not")
def test_products_on_an_accelerator() -> None:
    """In half precision, where one grouped product does it, against the loop on a CPU; padding among the rows."""
    experts = Experts(number=6, chosen=2, width=16, normalise=True)
    module = mixture_of(experts).bfloat16()
    rows, valid = torch.randn(3, 50, HIDDEN).bfloat16(), torch.rand(3, 50) < 0.7
    made = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.bfloat16)):
        placed = copy.deepcopy(module).to(device, dtype)
        out = placed(rows.to(device, dtype), valid.to(device))
        out.square().sum().backward()
        made.append([out.detach(), *(weight.grad for weight in placed.parameters())])
    for slow, fast in zip(*made, strict=True):
        assert bool(fast.isfinite().all())
        scale = float(slow.abs().max())
        torch.testing.assert_close(fast.double().cpu(), slow, rtol=0.1, atol=0.1 * scale)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", KINDS)
def test_gradients_pass_through_the_router(name: str) -> None:
    """Against finite differences, of the router's weights and biases, and of the rows."""
    module = mixture_of(KINDS[name])
    rows = torch.randn(1, 4, HIDDEN, requires_grad=True)
    router = module.gate
    assert torch.autograd.gradcheck(
        lambda given, weight: _with(module, weight)(given), (rows, router.weight), fast_mode=True
    )
    if router.expert_bias is not None:
        module(rows).sum().backward()
        assert router.expert_bias.grad is not None
        assert bool(router.expert_bias.grad.any()) == (KINDS[name].bias == "weight")


def _with(module: MixtureOfExperts, weight: Tensor) -> Any:
    names = {"gate.weight": weight}
    return lambda rows: torch.func.functional_call(module, names, (rows,))


def test_padding_alone_has_gradients_of_zeros() -> None:
    """As other processes of a training may have rows in the same step, and wait for a gradient from all."""
    module = mixture_of(KINDS["Mixtral"])
    module(torch.randn(1, 3, HIDDEN), torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    for name, weight in module.named_parameters():
        assert weight.grad is not None, name
        assert not weight.grad.any(), name


@pytest.mark.parametrize("rows", [1, 3])
def test_experts_that_are_not_chosen_are_not_read(rows: int) -> None:
    """As in decoding: what is in the matrices of the others makes no difference."""
    module = mixture_of(Experts(number=8, chosen=2, width=10, normalise=True)).eval()
    given = torch.randn(1, rows, HIDDEN)
    with torch.no_grad(), routings_of(module) as found:
        expected = module(given)
        idle = [expert for expert, load in enumerate(found[0].load.tolist()) if not load]
        assert len(idle) >= 8 - 2 * rows
        for weight in module.experts.parameters():
            weight[idle] = torch.nan
        assert torch.equal(module(given), expected)


def peak_bytes(call: Any) -> int:
    """The most memory that tensors take during a call beyond what they took before it."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))


def test_memory_grows_by_the_weights_alone() -> None:
    """With four times the experts, a forward pass takes what it took, and a step more by their gradients at most."""
    rows, forward, step, size = torch.randn(4, 256, 64), {}, {}, {}
    for number in (4, 16):
        module = MixtureOfExperts(Experts(number=number, chosen=2, width=96, normalise=True), 64)
        for weight in module.parameters():
            weight.data.normal_(0, 0.05)

        def learn(module: MixtureOfExperts = module) -> None:
            module.zero_grad(set_to_none=True)
            module(rows).sum().backward()

        with torch.no_grad():
            forward[number] = peak_bytes(lambda module=module: module(rows))
        step[number] = peak_bytes(learn)
        size[number] = sum(weight.nbytes for weight in module.parameters())
    assert forward[16] < 1.05 * forward[4]
    assert step[16] - step[4] < size[16] - size[4]


def test_blocks_share_their_choice() -> None:
    """The experts of a block's rows are among the few with the best scores in it; so a row depends on the others."""
    experts = Experts(number=8, chosen=2, width=4, block_length=4, block_capacity=3)
    module = mixture_of(experts)
    rows, block = torch.randn(1, 8, HIDDEN), torch.arange(8).unsqueeze(0) // 4
    with routings_of(module) as found:
        out = module(rows, None, block)
    for first in (0, 4):
        best = found[0].score_TX[first : first + 4].amax(0).topk(3).indices.tolist()
        assert set(found[0].expert_TK[first : first + 4].flatten().tolist()) <= set(best)
    rows[0, 3] = 9.0 * module.gate.weight[int(found[0].score_TX[:4].amax(0).argmin())]
    leaked = (module(rows, None, block) - out).abs().amax(-1)[0] > 1e-6
    assert leaked[:3].any()
    assert not leaked[4:].any()


@pytest.mark.parametrize("name", ["Mixtral", "OLMoE"])
def test_balance_loss_is_that_of_transformers(name: str) -> None:
    experts = KINDS[name]
    module = mixture_of(experts)
    rows, valid = torch.randn(2, 7, HIDDEN), torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    with routings_of(module) as found:
        module(rows, valid)
    logits = (rows.flatten(0, 1) @ module.gate.weight.T,)
    expected = load_balancing_loss_func(logits, experts.number, experts.chosen, valid.long())
    torch.testing.assert_close(balance_loss(found[0]), expected)


def test_balance_loss_of_equal_loads() -> None:
    """The number of experts a row, whatever the scores add up to."""
    experts = Experts(number=4, chosen=2, width=4, score="sigmoid")
    module = mixture_of(experts)
    module.gate.weight.data.zero_()
    with routings_of(module) as found:
        module(torch.randn(1, 3, HIDDEN))
    assert float(balance_loss(found[0]).detach()) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"number": 0}, "experts field 'number' is 0: give a whole number above 0."),
        ({"chosen": 9}, "experts field 'chosen' is 9: give at most the number of experts, 8."),
        ({"score": "relu"}, "experts field 'score' is 'relu': choose one of softmax, sigmoid."),
        ({"weighted": "both"}, "experts field 'weighted' is 'both': choose one of output, input."),
        ({"bias": True}, "experts field 'bias' is True: choose one of none, choice, weight."),
        ({"groups": 3}, "experts field 'groups' is 3: give a divisor of the 8 experts."),
        ({"groups": 8}, "experts field 'groups' is 8: leave at least two experts in each group."),
        ({"groups": 2, "kept_groups": 3}, "experts field 'kept_groups' is 3: give at most the 2 groups."),
        (
            {"groups": 4, "kept_groups": 1, "chosen": 3},
            "experts field 'chosen' is 3: give at most the 2 experts of the groups that are kept.",
        ),
        ({"scale": 0.0}, "experts field 'scale' is 0.0: give a number above 0."),
        ({"shared_width": -1}, "experts field 'shared_width' is -1: give a whole number, 0 for none."),
        (
            {"block_length": 4, "block_capacity": 1},
            "experts field 'block_capacity' is 1: give a number from 2 to 8.",
        ),
        ({"block_capacity": 4}, "experts field 'block_capacity' is 4: give block_length too, or leave it out."),
    ],
)  # fmt: skip
def test_mixtures_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        dataclasses.replace(KINDS["Mixtral"], **changes)
    assert str(error.value) == message


def test_layers_and_experts_that_disagree() -> None:
    plain = network()
    with pytest.raises(UserError) as error:
        plain.config.replace(experts=EXPERTS)
    assert str(error.value).endswith("give layers that have them.")
    with pytest.raises(UserError) as error:
        plain.config.replace(layers=(LayerKind(), LayerKind(experts=True)))
    assert str(error.value) == (
        "configuration field 'experts' is None: say of what kind they are, as some layers have them."
    )


@pytest.mark.parametrize(("name", "value", "lowest"), [("period", 0, 1), ("strength", -1.0, 0), ("offset", -1, 0)])
def test_query_scales_that_cannot_be(name: str, value: float, lowest: int) -> None:
    with pytest.raises(UserError) as error:
        QueryScale(**{"strength": 0.1, "period": 8, name: value})
    assert str(error.value) == f"query scale field {name!r} is {value}: give a number from {lowest} on."
