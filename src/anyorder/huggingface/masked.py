"""The face of networks that write by masked diffusion: LLaDA, Dream and those that are trained here.

Shape suffixes: B batch, L length, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import MaskedLMOutput

from anyorder.errors import UserError
from anyorder.huggingface.face import NotCausalFace, inputs_of, watch_attention
from anyorder.visibility import bidirectional


class LLaDAForMaskedLM(NotCausalFace):
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
    ) -> MaskedLMOutput | tuple[Any, ...]:
        """All masked tokens at once.

        Args:
            input_ids: tokens `[batch, length]`, the mask token where one is to be predicted.
            attention_mask: 1 for tokens and 0 for padding on either side, `[batch, length]`.
            labels: tokens to be predicted `[batch, length]`, -100 where none is; `logits[:, i]` is compared with
                `labels[:, i]`.
            position_ids: true positions `[batch, length]`, counted from the mask unless given.
            inputs_embeds: rows `[batch, length, hidden]` instead of tokens.
            output_hidden_states: whether to return the rows that each layer reads and those after the final norm.
            return_dict: False for a tuple.
            num_items_in_batch: what the summed loss is divided by; the number of predicted tokens unless given.
            output_attentions: whether to return the weights of each layer, `[batch, heads, length, length]`. They are
                computed by the eager backend, whatever the network uses otherwise.

        Raises:
            UserError: the network does not write by masked diffusion, or the arguments do not fit each other.
        """
        way = self.config.way("diffusion")
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("both or neither of input_ids and inputs_embeds are given: give one of them.")
        rows_BLE = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        shape = (rows_BLE.shape[0], rows_BLE.shape[1])
        if attention_mask is not None and attention_mask.shape != shape:
            raise UserError(f"attention_mask has the shape {list(attention_mask.shape)}: give {list(shape)}.")
        valid_BL = None if attention_mask is None else attention_mask.bool()
        position_BL = torch.arange(shape[1], device=self.device).expand(shape)
        if position_ids is not None:
            position_BL = position_ids.expand(shape)
        elif valid_BL is not None:
            position_BL = (valid_BL.long().cumsum(1) - 1).clamp(min=0)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        backend = "eager" if output_attentions else None
        views = self.prepare(bidirectional(), {"position": position_BL}, valid=valid_BL, backend=backend)
        weights: list[Tensor] = []
        if output_attentions:
            views, weights = watch_attention(views)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        with inputs_of(self.model.layers if output_hidden_states else ()) as states:
            hidden_BLE = self.read(rows_BLE, views)
        row_L = way.row(torch.arange(shape[1], device=hidden_BLE.device))
        logits_BLV = self.logits(hidden_BLE.index_select(1, row_L))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits_BLV,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        output = MaskedLMOutput(
            loss=loss,
            logits=logits_BLV,
            hidden_states=(*states, hidden_BLE) if output_hidden_states else None,
            attentions=tuple(weights) if output_attentions else None,
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return output.to_tuple() if as_tuple else output
