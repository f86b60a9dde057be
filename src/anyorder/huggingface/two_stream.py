"""The transformers model of networks that write in any order, by two streams.

Shape suffixes: B batch, L length, R = 2 L rows, E hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_outputs import CausalLMOutput

from anyorder.checkpoints.config_json import config_from_json
from anyorder.errors import UserError
from anyorder.huggingface.config import AnyOrderConfig
from anyorder.huggingface.mixin import NotCausalMixin, inputs_of, watch_attention
from anyorder.model import call
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER
from anyorder.orders.plan import GroupPlan
from anyorder.visibility import groups

logger = logging.getLogger(__name__)

GroupIds = Tensor | Sequence[int] | Sequence[Sequence[int]]
"""The rank of each token, whole numbers `[batch, length]`; `[1, length]` and `[length]` count for all texts."""


class LlamaTwoStreamForCausalLM(NotCausalMixin):
    """The network as transformers' tools know it, in two streams: `logits[:, i]` are those of token i itself.

    Content rows see the tokens of their own group and of those before it; query rows, which the logits are read from,
    see the groups before. A Llama is a valid start, by `from_pretrained` or from its configuration: its weights stay,
    and what query rows need beside them is drawn, to be trained.
    """

    writes = "in any order"

    _supports_flash_attn = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(_two_stream(config))
        self._grouping: GroupIds | None = None

    @classmethod
    def of(cls, model: Llama) -> Self:
        """Wrap a network, as `AnyOrderMixin.of` does.

        Raises:
            UserError: the network has no query rows.
        """
        model.config.mode(ANY_ORDER.name)
        return super().of(model)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Set as transformers' method does; for FlashAttention, which has no masks, take "sdpa", with a warning."""
        super().set_attn_implementation(_with_masks(attn_implementation), *args, **kwargs)

    def set_grouping(self, group_ids: GroupIds | None) -> None:
        """Set the group ids of further calls without any; None is one token a group, left to right, again."""
        self._grouping = group_ids

    def reset_grouping(self) -> None:
        """Do the same as `set_grouping(None)`."""
        self._grouping = None

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        group_ids: GroupIds | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> CausalLMOutput | tuple[Any, ...]:
        """Run both streams in one pass over `[tokens ; query rows]`.

        Args:
            input_ids: tokens `[batch, length]`.
            group_ids: the rank of each token; groups are written in the order of their ranks. What `set_grouping` was
                given unless given here, and one token a group, left to right, without both.
            attention_mask: 1 for tokens and 0 for padding on either side, `[batch, length]`.
            labels: tokens to be predicted `[batch, length]`, -100 where none is; `logits[:, i]` is compared with
                `labels[:, i]`. Padding is never predicted.
            inputs_embeds: rows `[batch, length, hidden]` instead of tokens.
            output_hidden_states: whether to return the content rows `[batch, length, hidden]` that each layer reads
                and those after the final norm.
            return_dict: False for a tuple.
            num_items_in_batch: what the summed loss is divided by; the number of predicted tokens unless given.
            output_attentions: whether to return each layer's weights of the query rows, `[batch, heads, length,
                length]`. They are computed by the eager backend, whatever the network uses otherwise.
            others: arguments of other networks, as PEFT passes them: None or False.

        Raises:
            UserError: the arguments do not fit each other.
        """
        self.refuse_others(others)
        rows_BLE = self.rows_of(input_ids, inputs_embeds, attention_mask=attention_mask, labels=labels)
        plan = self._plan(rows_BLE, group_ids, attention_mask)
        rows = plan.rows()
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        backend = "eager" if output_attentions else None
        views = self.prepare(groups(), rows.labels, n_keys=rows.n_keys, valid=rows.valid_BR, backend=backend)
        weights: list[Tensor] = []
        if output_attentions:
            views, weights = watch_attention(views)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with inputs_of(self.model.layers if output_hidden_states else ()) as states:
            position_BL = rows.labels["position"][:, rows.n_keys :]
            content_BLE = call.gather_rows(rows_BLE, rows.content_BL)
            hidden_BRE = self.read(self.with_query_rows(content_BLE, position_BL), views)
        # From the order of ranks back to that of the text; rows of padding stay zero, and columns of padding alone have
        # no rows.
        valid_BK = rows.valid_BR[:, rows.n_keys :]
        sample_N, _ = valid_BK.nonzero(as_tuple=True)

        def of_text(all_BR: Tensor) -> Tensor:
            """Select the query rows of `[batch, rows, ...]`, in the order of the text."""
            query_BK = all_BR[:, rows.n_keys :]
            placed_BL = query_BK.new_zeros((len(query_BK), rows_BLE.shape[1], *query_BK.shape[2:]))
            placed_BL[sample_N, rows.query_BK[valid_BK]] = query_BK[valid_BK]
            return placed_BL

        logits_BLV = self.logits(of_text(hidden_BRE))
        loss = None
        if labels is not None:
            target_BL = labels.masked_fill(~plan.valid_BL, call.IGNORED)
            loss = call.mean_loss(logits_BLV, target_BL, num_items_in_batch)
        back_BL = rows.content_BL.argsort(1)
        content = tuple(call.gather_rows(state[:, : rows.n_keys], back_BL) for state in (*states, hidden_BRE))
        attentions = tuple(
            of_text(by_key_BHRL.transpose(1, 2)).transpose(1, 2)
            for weights_BHRL in weights
            for by_key_BHRL in [weights_BHRL.gather(3, back_BL[:, None, None].expand_as(weights_BHRL))]
        )
        output = CausalLMOutput(
            loss=loss,
            logits=logits_BLV,
            hidden_states=content if output_hidden_states else None,
            attentions=attentions if output_attentions else None,
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else output

    def _plan(self, rows_BLE: Tensor, group_ids: GroupIds | None, attention_mask: Tensor | None) -> GroupPlan:
        """Return the plan of a call, in which every token is predicted."""
        batch, length = rows_BLE.shape[:2]
        device = rows_BLE.device
        valid_BL = torch.ones((batch, length), dtype=torch.bool, device=device)
        if attention_mask is not None:
            valid_BL = call.valid_of(attention_mask)
        group_ids = self._grouping if group_ids is None else group_ids
        if group_ids is None:
            rank_BL = torch.arange(length, device=device).expand(batch, -1)
        else:
            rank_BL = GroupPlan.from_group_ids(group_ids).rank_BL.to(device)
            if rank_BL.shape not in ((batch, length), (1, length)):
                remedy = f"give one for each token, {[batch, length]}, or set_grouping(None) for left to right"
                raise UserError(f"group_ids has the shape {list(rank_BL.shape)}: {remedy}.")
        return GroupPlan(
            rank_BL=rank_BL.expand(batch, -1).contiguous(), given_BL=torch.zeros_like(valid_BL), valid_BL=valid_BL
        )


def _two_stream(config: PreTrainedConfig) -> AnyOrderConfig:
    """Return the same configuration, of any architecture that is read, with any order among its modes."""
    if isinstance(config, AnyOrderConfig):
        ours = config
        if not config.has_query_rows:
            ours = copy.deepcopy(config)
            ours.modes = (ANY_ORDER, *config.modes)
    else:
        backbone = config_from_json(config.to_dict() | {"architectures": None})
        backbone = backbone.replace(modes=(ANY_ORDER, *backbone.modes))
        attention = config._attn_implementation
        ours = AnyOrderConfig(backbone=backbone, dtype=config.dtype, attn_implementation=attention)
    if (attention := _with_masks(ours._attn_implementation)) != ours._attn_implementation:
        ours._attn_implementation = attention
    return ours


def _with_masks(attention: Any) -> Any:
    """Return the requested attention, or one that computes the same and has masks, which two streams need."""
    if not str(attention).startswith("flash"):
        return attention
    logger.warning(
        "attention %r has no masks, which two streams need: 'sdpa' is taken, which computes the same", attention
    )
    return "sdpa"
