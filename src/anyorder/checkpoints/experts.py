"""From a dense network to experts (upcycling, Komatsuzaki et al. 2022, arXiv 2212.05055), and to fewer experts.

Shape suffixes: M layers that have experts, X experts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anyorder.checkpoints import weights
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.experts import Experts, routings_of
from anyorder.model.llama import Llama
from anyorder.utils.annotations import shown

SAMPLE_TOKENS = 4096
"""Tokens over which loads are counted."""


def read_number(given: int | str) -> tuple[int, int | None]:
    """The number of experts, and how many read a row where that is given: 8, "8", or "8:2".

    Raises:
        UserError: it is no such number.
    """
    match = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", str(given))
    if match is None or int(match[1]) < 1:
        raise UserError(f"experts is {shown(given)}: give their number, such as 8, or 8:2 where two read each token.")
    return int(match[1]), None if match[2] is None else int(match[2])


def to_experts(model: Llama, number: int, chosen: int = 1) -> Llama:
    """The network with `number` equal copies of each feed-forward network, and a router at zero.

    It computes what it did before, whichever experts a row has. Its other weights are those of `model` itself.

    Args:
        model: a network without experts.
        number: experts of each layer.
        chosen: experts that read a row.

    Raises:
        UserError: the network has experts, or biases in feed-forward networks, which experts lack.
    """
    config = model.config
    if config.experts is not None:
        remedy = f"give at most its {config.experts.number} experts, to keep the busiest"
        raise UserError(f"experts is {number}, but the network has experts: {remedy}.")
    if config.mlp_bias:
        raise UserError(f"experts is {number}, but the feed-forward networks have biases, which experts lack.")
    # Equal scores, 1 / number each: of several they are divided by their sum, of one multiplied by the number, so that
    # its score still has a gradient.
    experts = Experts(
        number=number, chosen=chosen, width=config.intermediate_size, normalise=chosen > 1,
        scale=1.0 if chosen > 1 else float(number),
    )  # fmt: skip
    layers = tuple(dataclasses.replace(kind, experts=True) for kind in config.layers)
    made = weights.blank(config.replace(experts=experts, layers=layers), model.backend)
    dense = dict(model.named_parameters(remove_duplicate=False))
    for name in dict(made.named_parameters(remove_duplicate=False)):
        weights.put(made, name, dense[name] if name in dense else nn.Parameter(_copies(name, dense, number)))
    return made.train(model.training)


def _copies(name: str, dense: dict[str, nn.Parameter], number: int) -> Tensor:
    """A tensor of a mixture, from those of the feed-forward network in its place."""
    place = name.partition(".mlp.")[0] + ".mlp."
    gate, up, down = (dense[f"{place}{part}_proj.weight"].detach() for part in ("gate", "up", "down"))
    if name.endswith("gate.weight"):
        return gate.new_zeros(number, gate.shape[1])
    one = torch.cat((gate, up)) if name.endswith("gate_up_proj") else down
    return one.repeat(number, 1, 1)


def keep_busiest(model: Llama, number: int, load_MX: Tensor) -> Llama:
    """The network with the experts of each layer that read most rows; its other weights are those of `model` itself.

    Args:
        model: a network with experts.
        number: experts of each layer that are kept; where there are groups, equally many of each.
        load_MX: rows that each expert read, see `expert_loads`.

    Raises:
        UserError: the network has fewer experts, fewer are left than read a row, or groups would not be equal.
    """
    experts = model.config.experts
    if experts is None:
        raise UserError(f"experts is {number} to keep, but the network has none: give a network that has experts.")
    if number > experts.number:
        raise UserError(f"experts is {number}, but the network has {experts.number}: give at most as many.")
    try:
        capacity = min(experts.block_capacity, number)
        config = model.config.replace(experts=dataclasses.replace(experts, number=number, block_capacity=capacity))
    except UserError as error:
        raise UserError(f"experts is {number}, which this mixture cannot have: {error}") from error
    in_group = number // experts.groups
    best = load_MX.unflatten(1, (experts.groups, -1)).topk(in_group, dim=-1).indices.sort(-1).values
    first_G1 = torch.arange(experts.groups, device=best.device).unsqueeze(1) * (experts.number // experts.groups)
    kept = iter((best + first_G1).flatten(1))
    kept_of = {f"model.layers.{index}.": next(kept) for index, kind in enumerate(config.layers) if kind.experts}
    made = weights.blank(config, model.backend)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer = re.match(r"model\.layers\.\d+\.", name)
        of_experts = layer is not None and re.search(r"\.mlp\.(gate\.|experts\.)", name)
        if layer is not None and of_experts:
            parameter = nn.Parameter(parameter.detach()[kept_of[layer[0]].to(parameter.device)])
        weights.put(made, name, parameter)
    return made.train(model.training)


@torch.no_grad()
def expert_loads(model: Llama, texts: Sequence[Sequence[int]]) -> Tensor:
    """Rows that each expert of each layer reads of these texts in the network's default mode, `[layers, experts]`."""
    loads = []
    for ids in texts:
        with routings_of(model) as routings:
            model(torch.tensor([ids], device=model.device))
        loads.append(torch.stack([routing.load for routing in routings]))
    return torch.stack(loads).sum(0)


def with_experts(model: Llama, experts: int | str, text: Sequence[int] | None) -> Llama:
    """The network with experts made of its feed-forward networks, or with those of its experts that are busiest.

    Args:
        model: a network without or with experts.
        experts: their number, see `read_number`.
        text: token ids, over which loads are counted; for networks with experts alone.

    Raises:
        UserError: see `to_experts` and `keep_busiest`, or the text is missing or not needed.
    """
    number, chosen = read_number(experts)
    if model.config.experts is None:
        if text is not None:
            raise UserError("expert_sample is given, but the network has no experts to choose from: leave it out.")
        return to_experts(model, number, chosen or 1)
    if not text:
        remedy = "give expert_sample, a file of text with a token at least"
        raise UserError(f"experts is {shown(experts)}, and the busiest are kept: {remedy}.")
    if chosen is not None:
        remedy = f"give {number}, as {model.config.experts.chosen} go on reading each token"
        raise UserError(f"experts is {shown(experts)}, but experts are kept: {remedy}.")
    return keep_busiest(model, number, expert_loads(model, texts_of(text, model.config)))


def texts_of(token_ids: Sequence[int], config: ModelConfig) -> list[list[int]]:
    """The first `SAMPLE_TOKENS` of a text in pieces that the network can read."""
    length = min(config.context_length, 512)
    ids = list(token_ids[:SAMPLE_TOKENS])
    return [ids[start : start + length] for start in range(0, len(ids), length)]
