"""What a device holds and sends when a network is split over many, computed from its configuration alone.

Of a collective over n devices, each sends (n - 1) / n of its result where parts are gathered or results scattered, and
twice that where all get the sum, as rings do (Patarasuk and Yuan 2009).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import torch

from anyorder.checkpoints.weights import blank
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.parallel.plans import check_divisible, sharded_dimension, split_dimension, tensor_plan
from anyorder.utils.annotations import shown


@dataclass(frozen=True)
class Layout:
    """How devices are used.

    Attributes:
        tp: devices that share each matrix (tensor parallelism).
        fsdp: groups of so many devices, over which all parameters are sharded (fully sharded data parallelism).
    """

    tp: int = 1
    fsdp: int = 1

    @property
    def devices(self) -> int:
        """All of them."""
        return self.tp * self.fsdp

    @classmethod
    def of(cls, words: str) -> Layout:
        """Read a layout such as "tp=8,fsdp=64".

        Raises:
            UserError: it is none.
        """
        found: dict[str, int] = {}
        for word in words.split(","):
            match = re.fullmatch(r"\s*(tp|fsdp)\s*=\s*([1-9]\d{0,6})\s*", word)
            if match is None or match[1] in found:
                raise UserError(f"parallel is {shown(words)}: give numbers of devices, such as tp=8,fsdp=64.")
            found[match[1]] = int(match[2])
        return cls(**found)


@dataclass(frozen=True)
class Sizes:
    """Bytes of one device, the one with the most.

    Args:
        config: the network.
        layout: how devices are used.
        dtype: of weights, gradients, moments, cache and what is sent.

    Raises:
        UserError: `layout.tp` does not divide what is split.
    """

    config: ModelConfig
    layout: Layout
    dtype: torch.dtype

    def __post_init__(self) -> None:
        check_divisible(self.config, self.layout.tp)

    @cached_property
    def parameters(self) -> int:
        """Number of weights that the device keeps."""
        return sum(_sharded(shape, self.layout.fsdp) for shape in self._split_shapes.values())

    @property
    def weights(self) -> int:
        """Bytes of the weights that the device keeps."""
        return self.parameters * self.dtype.itemsize

    @property
    def training(self) -> int:
        """Bytes of weights, gradients and the two moments of AdamW; activations are not counted."""
        return 4 * self.weights

    @property
    def cache_per_token(self) -> int:
        """Bytes of keys and values of one token."""
        config = self.config
        split = 1 if config.qk_norm == "learned-full-width" else self.layout.tp
        heads = config.num_key_value_heads // split
        return 2 * config.num_hidden_layers * heads * config.head_dim * self.dtype.itemsize

    def summed_in_pass(self, tokens: int) -> int:
        """Bytes of the sums over tensor-parallel devices in a forward pass over so many tokens."""
        if self.layout.tp == 1:
            return 0
        row = tokens * self.config.hidden_size * self.dtype.itemsize
        return row * (1 + sum(1 + self._sums(kind.experts) for kind in self.config.layers))

    def _sums(self, experts: bool) -> int:
        """Sums of the size of a row that a feed-forward network takes."""
        if not experts or self.config.experts is None:
            return 1
        return self.config.experts.chosen + bool(self.config.experts.shared_width)

    def gathered_in_pass(self, tokens: int, predicted: int) -> int:
        """Bytes that are gathered over tensor-parallel devices: scores of so many predicted tokens.

        Where a norm needs all heads, also queries, keys and values of so many tokens.
        """
        if self.layout.tp == 1:
            return 0
        config = self.config
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        full_width = config.qk_norm == "learned-full-width"
        rows = tokens * config.num_hidden_layers * heads * config.head_dim if full_width else 0
        return (predicted * config.vocab_size + rows) * self.dtype.itemsize

    def sent_in_pass(self, tokens: int, predicted: int) -> int:
        """Bytes that the device sends in a forward pass, see the top of the file."""
        share = (self.layout.tp - 1) / self.layout.tp
        return round(share * (2 * self.summed_in_pass(tokens) + self.gathered_in_pass(tokens, predicted)))

    @property
    def shards(self) -> int:
        """Bytes of the weights of a group when they are gathered, in shards of equal size."""
        if self.layout.fsdp == 1:
            return 0
        shapes = self._split_shapes.values()
        return self.layout.fsdp * sum(_sharded(shape, self.layout.fsdp) for shape in shapes) * self.dtype.itemsize

    def sent_for_shards(self) -> int:
        """Bytes that the device sends for a batch of training to gather weights twice and scatter gradients once."""
        return round(3 * (self.layout.fsdp - 1) / self.layout.fsdp * self.shards)

    @cached_property
    def _split_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters of a tensor-parallel device, by their names."""
        plan = tensor_plan(self.config)
        shapes = {}
        for name, weight in blank(self.config).named_parameters():
            shape, dimension = list(weight.shape), split_dimension(name, plan)
            if dimension is not None:
                shape[dimension] = -(-shape[dimension] // self.layout.tp)
            shapes[name] = tuple(shape)
        return shapes


def _sharded(shape: tuple[int, ...], shards: int) -> int:
    """Return the number of weights in the largest of so many shards."""
    dimension = sharded_dimension(shape, shards)
    return -(-shape[dimension] // shards) * math.prod(shape) // shape[dimension]
