"""The transformers model of networks that write by masked diffusion: LLaDA, Dream and those trained here.

Shape suffixes: B batch, L length, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput

from anyorder.errors import UserError
from anyorder.huggingface.mixin import NotCausalMixin, inputs_of, watch_attention
from anyorder.model import call
from anyorder.model.modes import masked_diffusion_mode
from anyorder.visibility import bidirectional


class LLaDAForMaskedLM(NotCausalMixin):
    """The network as transformers' tools know networks that fill in masked tokens.

    Every row sees all tokens, and `logits[:, i]` are those of token i. It takes part in everything that a `Llama` does
    here as well, such as `anyorder.generate`.
    """

    writes = "by masked diffusion"

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """Predict all masked tokens at once.

        Args:
            input_ids: tokens `[batch, length]`, the mask token where one is to be predicted.
            attention_mask: 1 for tokens and 0 for padding, on either side and between, `[batch, length]`.
            labels: tokens to be predicted `[batch, length]`, -100 where none is; `logits[:, i]` is compared with
                `labels[:, i]`. Padding is never predicted.
            position_ids: true positions `[batch, length]`, each once in a text, counted from the mask unless given.
                Where the network's own logits are shifted (Dream), a token's are those of the row one position before.
            inputs_embeds: rows `[batch, length, hidden]` instead of tokens.
            output_hidden_states: whether to return the rows that each layer reads and those after the final norm.
            return_dict: False for a tuple.
            num_items_in_batch: what the summed loss is divided by; the number of predicted tokens unless given.
            output_attentions: whether to return the weights of each layer, `[batch, heads, length, length]`. They are
                computed by the eager backend, whatever the network uses otherwise.
            others: arguments of other networks, as PEFT passes them: None or False.

        Raises:
            UserError: the network does not write by masked diffusion, or the arguments do not fit each other.
        """
        mode = masked_diffusion_mode(self.config.modes, self.config.default_mode)
        self.refuse_others(others)
        rows_BLE = self.rows_of(input_ids, inputs_embeds, attention_mask=attention_mask, labels=labels)
        shape = rows_BLE.shape[:2]
        valid_BL = torch.ones(shape, dtype=torch.bool, device=rows_BLE.device)
        if attention_mask is not None:
            valid_BL = call.valid_of(attention_mask)
        position_BL = call.positions_of(valid_BL) if position_ids is None else position_ids.expand(shape)
        if position_ids is not None:
            _refuse_repeated(position_BL, valid_BL)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        views = self.prepare(
            bidirectional(),
            {"position": position_BL},
            valid=None if attention_mask is None else valid_BL,
            backend="eager" if output_attentions else None,
        )
        weights: list[Tensor] = []
        if output_attentions:
            views, weights = watch_attention(views)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with inputs_of(self.model.layers if output_hidden_states else ()) as states:
            hidden_BLE = self.read(rows_BLE, views)
        row_BL = call.predicting_rows(mode.shifted, position_BL, valid_BL)
        logits_BLV = self.logits(call.gather_rows(hidden_BLE, row_BL) if mode.shifted else hidden_BLE)
        loss = None
        if labels is not None:
            target_BL = labels.masked_fill(~valid_BL, call.IGNORED)
            loss = call.mean_loss(logits_BLV, target_BL, num_items_in_batch)
        output = MaskedLMOutput(
            loss=loss,
            logits=logits_BLV,
            hidden_states=(*states, hidden_BLE) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else output


def _refuse_repeated(position_BL: Tensor, valid_BL: Tensor) -> None:
    """Refuse texts that are packed into one row, where every token would see all of them."""
    below_BL = -1 - torch.arange(position_BL.shape[1], device=position_BL.device)  # of padding, each another number
    sorted_BL = torch.where(valid_BL, position_BL, below_BL).sort(1).values
    if bool((sorted_BL.diff() == 0).any()):
        raise UserError(
            "position_ids has a position twice in one row, but texts packed into a row would see each other: give each "
            "text a row of its own, padded, with an attention_mask."
        )
