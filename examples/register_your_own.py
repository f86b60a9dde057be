"""Register a rotary embedding and an attention of your own, and save and load a network that names them.

python examples/register_your_own.py
"""

import dataclasses
import tempfile

import torch
from torch import Tensor, nn

from anyorder.checkpoints import load_model, save_model
from anyorder.model.cache import LayerCache
from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import ROTARY_EMBEDDINGS, Rotary
from anyorder.model.self_attention import ATTENTIONS, SelfAttention
from anyorder.model.view import View


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewerFrequencies(Rotary):
    """Only the fastest frequencies turn; the others tell nothing of positions."""

    share: float = 0.5

    def frequencies(self, head_dim: int, length_B: Tensor | None = None) -> Tensor:
        every = super().frequencies(head_dim, length_B)
        return every * (torch.arange(len(every)) < self.share * len(every))


class GatedAttention(SelfAttention):
    """Each row decides how much it takes of what it sees."""

    def __init__(self, config: ModelConfig, kind: LayerKind) -> None:
        super().__init__(config, kind)
        self.gate = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, rows_BRE: Tensor, view: View, kv: LayerCache | None) -> Tensor:
        return super().forward(rows_BRE, view, kv) * self.gate(rows_BRE).sigmoid()


def main() -> None:
    ROTARY_EMBEDDINGS["fewer"] = FewerFrequencies
    ATTENTIONS["gated"] = GatedAttention
    config = ModelConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        rotary=FewerFrequencies(theta=10_000.0, share=0.25), attention="gated",
    )  # fmt: skip
    model, token_ids = Llama(config), torch.arange(10).unsqueeze(0)
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, folder)
        again = load_model(folder)
    print(again.config.rotary, again.config.attention, sep="\n")
    print("the same logits:", torch.equal(again(token_ids).logits, model(token_ids).logits))


if __name__ == "__main__":
    main()
