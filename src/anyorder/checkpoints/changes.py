"""What `convert` changes about a network between reading and writing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anyorder.checkpoints.experts import read_number, with_experts
from anyorder.checkpoints.heads import share_heads, shared_config
from anyorder.checkpoints.places import is_file
from anyorder.checkpoints.tokenizer.encoding import plain_tokens
from anyorder.checkpoints.widths import to_wider, wider_config
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.utils.annotations import check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of a network, in the order in which they are made.

    Attributes:
        kv_heads: key-value heads that are left, a divisor of those that there are; all unless given.
        pooling: how several become one.
        widen: how many times as wide the network becomes, computing the same, to begin a training from.
        experts: of a dense network, copies of each feed-forward network as experts, such as 8, or "8:2" where two read
            each token; of a network with experts, how many of each layer are kept, the busiest.
        expert_sample: a file of text, over whose beginning it is counted which experts are busy.
        seed: decides what is drawn for the pooling "random" and for `widen`.

    Raises:
        UserError: a value that cannot be.
    """

    kv_heads: int | None = None
    pooling: Literal["mean", "first", "random"] = "mean"
    widen: int | None = None
    experts: int | str | None = None
    expert_sample: str | Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.experts is not None:
            read_number(self.experts)
        elif self.expert_sample is not None:
            raise UserError("expert_sample is given without experts: give how many are kept, or leave it out.")

    def check(self, config: ModelConfig) -> None:
        """Refuse what a network of this configuration cannot become.

        Raises:
            UserError: see above.
        """
        if self.kv_heads is not None:
            shared_config(config, self.kv_heads)
        if self.widen is not None:
            wider_config(config, self.widen)

    def made(self, model: Llama, tokenizer: PreTrainedTokenizerBase | None) -> Llama:
        """Return the changed network.

        Raises:
            UserError: there is no tokenizer, or no such file, for the text of `expert_sample`.
        """
        if self.kv_heads is not None:
            model = share_heads(model, self.kv_heads, self.pooling, self.seed)
        if self.widen is not None:
            model = to_wider(model, self.widen, self.seed)
        if self.experts is None:
            return model
        return with_experts(model, self.experts, self._sample(tokenizer))

    def _sample(self, tokenizer: PreTrainedTokenizerBase | None) -> list[int] | None:
        """The tokens of `expert_sample`."""
        if self.expert_sample is None:
            return None
        if tokenizer is None:
            raise UserError("expert_sample is text, but the checkpoint has no tokenizer: give tokenizer.")
        sample = Path(self.expert_sample)
        if not is_file(sample):
            raise UserError(f"expert_sample {str(sample)!r} is no file here: check the path.")
        return plain_tokens(tokenizer, sample.read_text(encoding="utf-8"))
