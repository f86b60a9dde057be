"""A small network with vision, and a tokenizer that has the tokens of images."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, diffusion
from anyorder.model.rope import Rotary
from anyorder.model.vision import VisionConfig

OF_IMAGES = (
    "<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
)  # fmt: skip
WORDS = ("what", "is", "this", "a", "cup", "of", "coffee", "say", "it", "?")

VOCABULARY = 32


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word, and those of images."""
    vocabulary = {name: number for number, name in enumerate(["<unk>", "<s>", "</s>", *OF_IMAGES, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    own = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    own.add_special_tokens({"additional_special_tokens": list(OF_IMAGES)})
    own.chat_template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{{ '<|image|>' if part.type == 'image' else part.text }} {% endfor %}{% endfor %}"
    )
    return own


def config(**changes: Any) -> ModelConfig:
    """Three modes; a tile is one row or four."""
    vision = VisionConfig(
        hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, output_size=24, image_size=56,
        max_tiles=4, image_token_id=6,
    )  # fmt: skip
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
        "rotary": Rotary(theta=10_000.0), "bos_token_id": 1, "vision": vision,
        "modes": (LEFT_TO_RIGHT, ANY_ORDER, diffusion(mask_token_id=VOCABULARY - 1)),
    }  # fmt: skip
    return ModelConfig(**(shape | changes))


def network(**changes: Any) -> Llama:
    """A random network whose images matter to what it writes."""
    model = Llama(config(**changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model
