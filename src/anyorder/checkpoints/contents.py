"""What is saved of a network: its tensors as they are, and the configuration that they have.

Modules can be changed after a network was built: embeddings resized, layers removed, heads pruned, the head untied. The
configuration follows the tensors where these leave no doubt, and the network is refused where they do, before anything
is written. So whatever is saved can be loaded.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from anyorder.checkpoints.weights import DTYPES, blank, counted, listed
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.int8 import Int8Linear
from anyorder.model.llama import Llama

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

UNDO = "undo what was put around or into its modules (merge adapters, make pruning permanent), then save it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What is saved.

    Attributes:
        config: of a network that has these tensors.
        tensors: by name, no two in the same memory, without the head's where it is tied.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]


def contents_of(model: Llama, state: Mapping[str, Tensor] | None = None) -> Contents:
    """Return the tensors of a network, and its configuration as the tensors have it.

    Args:
        model: the network, also as a model of transformers.
        state: its tensors, where they are gathered from several processes; the network's own unless given.

    Raises:
        UserError: no network of any configuration has these tensors, or a tensor cannot be read again.
    """
    network: Any = getattr(model, "_orig_mod", model)  # of a compiled one
    _refuse_wrapped(network)
    found = dict(network.state_dict() if state is None else state)
    stated: ModelConfig = getattr(network.config, "backbone", network.config)
    for name, tensor in found.items():
        _check_tensor(name, tensor)
    config = _as_found(stated, found)
    if config.tie_word_embeddings:
        found.pop(HEAD, None)
    expected = {name: weight.shape for name, weight in blank(config).state_dict().items()}
    if config.tie_word_embeddings:
        del expected[HEAD]
    _compare(found, expected)
    return Contents(config=config, tensors=_apart(found))


def check_finite(contents: Contents) -> None:
    """Refuse tensors that would not be read again.

    Raises:
        UserError: one holds NaN or infinity.
    """
    for name, tensor in contents.tensors.items():
        if tensor.numel() and not all(map(math.isfinite, tensor.aminmax())):
            raise UserError(f"tensor {name!r} holds NaN or infinity: go back to a checkpoint before training diverged.")


def _refuse_wrapped(model: Any) -> None:
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise UserError("the network's weights are int8, rounded for writing alone: save it as it was loaded before.")
    if any(name.startswith("base_model.") or ".base_layer." in name for name, _ in model.named_parameters()):
        raise UserError("the network has an adapter of PEFT: save what its merge_and_unload() returns.")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPES.values():
        raise UserError(f"tensor {name!r} is {tensor.dtype}: convert the network to one of {listed(DTYPES)}.")
    if tensor.is_meta:
        raise UserError(f"tensor {name!r} is on the meta device and holds no numbers: load the weights first.")


def _as_found(config: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelConfig:
    """Return the configuration with the fields that tensors decide; where they disagree among themselves, as it was."""
    layers = {int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d+)\.", name))}

    def alike(name: str, dim: int = 0) -> int | None:
        """Return the size that all layers' tensors of this name have; None where they differ or lack it."""
        sizes = {len(layers) and _size(tensors.get(f"model.layers.{layer}.{name}"), dim) for layer in layers}
        return sizes.pop() if len(sizes) == 1 else None

    def biased(name: str) -> bool:
        return any(f"model.layers.{layer}.{name}.bias" in tensors for layer in layers)

    changes: dict[str, Any] = {
        "vocab_size": _size(tensors.get(EMBEDDING), 0),
        "intermediate_size": alike("mlp.gate_proj.weight"),
        "num_attention_heads": _heads(alike("self_attn.q_proj.weight"), config.head_dim),
        "num_key_value_heads": _heads(alike("self_attn.k_proj.weight"), config.head_dim),
        "attention_bias": biased("self_attn.q_proj"),
        "attention_output_bias": biased("self_attn.o_proj"),
        "mlp_bias": biased("mlp.gate_proj"),
        "tie_word_embeddings": _is_tied(config, tensors),
    }
    if len(layers) != len(config.layers) and len(set(config.layers)) == 1:
        changes |= {"num_hidden_layers": len(layers), "layers": config.layers[:1] * len(layers)}
    changes = {name: value for name, value in changes.items() if value is not None and value != getattr(config, name)}
    if not changes:
        return config
    try:
        return config.replace(**changes)
    except UserError as error:
        raise UserError(f"the network was changed so that no configuration is that of its tensors: {error}") from error


def _size(tensor: Tensor | None, dim: int) -> int | None:
    return None if tensor is None or tensor.dim() <= dim else tensor.shape[dim]


def _heads(rows: int | None, head_dim: int) -> int | None:
    return None if rows is None or rows % head_dim else rows // head_dim


def _is_tied(config: ModelConfig, tensors: Mapping[str, Tensor]) -> bool | None:
    embedding, head = tensors.get(EMBEDDING), tensors.get(HEAD)
    if embedding is None or head is None:  # of a state without the head's
        return None
    if embedding.shape == head.shape and embedding.data_ptr() == head.data_ptr():
        return True
    return config.tie_word_embeddings and torch.equal(embedding, head)


def _compare(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    if others := [name for name in found if name not in expected]:
        raise UserError(f"the network has {counted(others)} that its configuration does not know: {UNDO}.")
    if missing := [name for name in expected if name not in found]:
        raise UserError(f"the network lacks {counted(missing)} that its configuration has: {UNDO}.")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise UserError(
                f"tensor {name!r} has shape {list(found[name].shape)}, but with the network's other tensors it would "
                f"have {list(shape)}: change all of them alike, then save it."
            )


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same numbers, copied where several tensors share their memory."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.detach().clone() if memory in seen else tensor.detach()
        seen.add(memory)
    return apart
