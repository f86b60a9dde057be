"""Llama 4 with vision in Hugging Face's form: transformers' logits, there and back, and what is wrong with a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Llama4Config, Llama4ForConditionalGeneration

import anyorder
from anyorder.checkpoints import load_model, read_checkpoint, save_model
from anyorder.errors import UserError
from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT
from tests import vision
from tests.checkpoints import metas_llama4
from tests.checkpoints.test_meta import assert_same_weights

VOCABULARY, PATCH = 96, 90

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 24, "intermediate_size_mlp": 40,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4,
    "max_position_embeddings": 256, "interleave_moe_layer_step": 2, "attention_chunk_size": 8, "floor_scale": 8,
    "attn_scale": 0.3, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 56,
    "patch_size": 14, "vision_output_dim": 24, "projector_input_dim": 24, "projector_output_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip


def twin_of(**text: Any) -> Llama4ForConditionalGeneration:
    """transformers' network, random."""
    config = Llama4Config(text_config=TEXT | text, vision_config=VISION, image_token_index=PATCH)
    twin = Llama4ForConditionalGeneration(config).eval()
    for parameter in twin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return twin


@torch.no_grad()
def logits_of(twin: Llama4ForConditionalGeneration, ids: Tensor, pixels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The logits of transformers' parts, put together as its `forward` does, which 5.24 broke."""
    rows = twin.multi_modal_projector(twin.vision_model(pixels).last_hidden_state).flatten(0, 1)
    embedded = twin.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter((ids == PATCH).unsqueeze(-1), rows)
    out: Tensor = twin.language_model(inputs_embeds=embedded, attention_mask=mask).logits
    return out


def text_with(images: int, length: int, seed: int) -> list[int]:
    """Tokens with four image tokens for each image."""
    words = torch.randint(4, PATCH, (length - 4 * images,), generator=torch.Generator().manual_seed(seed)).tolist()
    for image in range(images):
        at = 2 + 7 * image
        words[at:at] = [PATCH] * 4
    return words


def fed(ids: Tensor) -> Tensor:
    """The ids with those of the rows of images, in their order."""
    there = ids == PATCH
    return ids.masked_scatter(there, VOCABULARY + torch.arange(int(there.sum())))


def padded(texts: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts, padded on a side."""
    width = max(map(len, texts))
    rows = [([0] * (width - len(t)) + [*t]) if side == "left" else ([*t] + [0] * (width - len(t))) for t in texts]
    masks = [[0] * (width - len(t)) + [1] * len(t) for t in texts]
    return torch.tensor(rows), torch.tensor([mask if side == "left" else mask[::-1] for mask in masks])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers wrote."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("llama4") / "theirs"
    twin_of().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def twin(folder: Path) -> Llama4ForConditionalGeneration:
    return Llama4ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def ours(folder: Path) -> Llama:
    return load_model(folder, device="cpu")


def test_logits_are_those_of_transformers(twin: Llama4ForConditionalGeneration, ours: Llama) -> None:
    texts, pixels = [text_with(2, 33, 0), text_with(1, 21, 1), text_with(0, 9, 2)], torch.randn(3, 3, 56, 56)
    ids, mask = padded(texts, "right")
    with torch.no_grad():
        shown = ours.with_images(ours.image_rows(pixels).flatten(0, 1))
        logits = shown(fed(ids), mask).logits
    expected = logits_of(twin, ids, pixels, mask)
    valid = mask.bool()
    assert (logits - expected)[valid].abs().max() < 1e-5 * expected[valid].abs().max()
    # Each alone, and padded on the left, where transformers would count padding as positions.
    left_ids, left_mask = padded(texts, "left")
    with torch.no_grad():
        left = shown(fed(left_ids), left_mask).logits[left_mask.bool()]
    assert (left - logits[valid]).abs().max() < 1e-5 * expected[valid].abs().max()
    alone = logits_of(twin, torch.tensor([texts[1]]), pixels[2:])
    assert (logits[1, : len(texts[1])] - alone[0]).abs().max() < 1e-5 * alone.abs().max()


def test_what_is_written_from_a_cache_is_what_transformers_writes(
    twin: Llama4ForConditionalGeneration, ours: Llama, tmp_path: Path
) -> None:
    from anyorder.api.tiles import tiles_of
    from tests.api.llama4_tiles import image

    texts = [text_with(1, 21, 1), text_with(1, 9, 2)]
    shown = [image(50, 50), image(40, 41)]
    out = anyorder.generate(ours, None, texts, images=[[one] for one in shown], max_new_tokens=12)
    assert ours.config.vision is not None
    for number, (text, one) in enumerate(zip(texts, shown, strict=True)):
        written: list[int] = []
        pixels = tiles_of(one, ours.config.vision)[0].float()
        while len(written) < 12 and not {2, 3} & set(written):
            written.append(int(logits_of(twin, torch.tensor([[*text, *written]]), pixels)[0, -1].argmax()))
        assert out.token_ids[number] == written


def test_there_and_back(twin: Llama4ForConditionalGeneration, ours: Llama, folder: Path, tmp_path: Path) -> None:
    save_model(ours, tmp_path / "ours", max_shard_size=60_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    again = load_model(tmp_path / "ours", device="cpu")
    assert again.config == ours.config
    assert_same_weights(again, ours)
    loaded: Any = Llama4ForConditionalGeneration.from_pretrained(tmp_path / "ours", output_loading_info=True)
    theirs, about = loaded
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    for name, weight in twin.state_dict().items():
        assert torch.equal(weight, theirs.state_dict()[name]), name
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    read = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        same = set(written[part]) & set(read[part]) - {"dtype", "layer_types", "rope_parameters"}
        assert {name: written[part][name] for name in same} == {name: read[part][name] for name in same}
    assert json.loads((tmp_path / "ours" / "preprocessor_config.json").read_text())["max_patches"] == 16


@pytest.mark.parametrize("shards", [1, 2, 8])
def test_from_metas_files_and_back(tmp_path: Path, shards: int) -> None:
    model = metas_llama4.network()
    loaded = load_model(metas_llama4.write(model, tmp_path / "meta", shards), device="cpu")
    save_model(loaded, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "llama4"
    again = load_model(tmp_path / "saved", device="cpu")
    assert_same_weights(again, model)
    assert again.config == loaded.config


def test_a_network_that_llama_4_cannot_express_is_written_in_our_form(tmp_path: Path) -> None:
    model = vision.network()  # three modes, and learned rotary pairs in every layer
    save_model(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "anyorder"
    again = load_model(tmp_path / "ours", device="cpu")
    assert again.config == model.config
    assert_same_weights(again, model)
    seeing = vision.network(modes=(LEFT_TO_RIGHT,))
    for name in ("a.bin", "a.gguf"):
        with pytest.raises(UserError, match="vision"):
            save_model(seeing, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_the_number_of_tiles_is_that_of_the_preprocessor(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "preprocessor_config.json").write_text('{"image_processor_type": "Llama4ImageProcessor", "max_patches": 5}')
    vision_config = read_checkpoint(copy).config.vision
    assert vision_config is not None
    assert vision_config.max_tiles == 5
    (copy / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    with pytest.raises(UserError, match=r"has 'CLIPImageProcessor', resize_to_max_canvas False: this version reads"):
        read_checkpoint(copy)


def copied(folder: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (None, {"text_config": None}, "field 'text_config' is None: give the fields of the text network"),
        (None, {"vision_config": None}, "field 'vision_config' is None: give the fields of the encoder"),
        (None, {"architectures": ["Llama4Model"]}, r"architectures is \['Llama4Model'\]: of model_type 'llama4', this"),
        (None, {"quantization_config": {"bits": 8}}, "quantization_config is {'bits': 8}: this version reads networks"),
        (None, {"image_token_index": 96}, "vision field 'image_token_id' is 96: give ids from 0 to 95"),
        (None, {"image_token_index": "x"}, "field 'image_token_id' is 'x': give a whole number"),
        ("text_config", {"model_type": "llama"}, "model_type of text_config is 'llama': this version reads 'llam"),
        ("text_config", {"attention_chunk_size": 0}, "field 'attention_chunk_size' is 0: give a whole number above 0"),
        ("vision_config", {"hidden_act": "relu"}, "field 'hidden_act' of vision_config is 'relu': this version reads"),
        ("vision_config", {"pixel_shuffle_ratio": 0.3}, "field 'pixel_shuffle_ratio' is 0.3: give 1 divided by"),
        ("vision_config", {"intermediate_size": 60}, "field 'intermediate_size' of vision_config is 60: give 64"),
        ("vision_config", {"image_size": [56, 28]}, r"field 'image_size' is \[56, 28\]: give a whole number"),
        ("vision_config", {"image_size": 60}, "vision field 'image_size' is 60: give a multiple of 28"),
        ("vision_config", {"image_size": 84}, r"embedding_vlm' in '.*' has shape \[17, 16\], but the .* \[37, 16\]"),
        ("vision_config", {"num_hidden_layers": 3}, r"lacks tensors 'vision_model.model.layers.2.*: complete it"),
        ("vision_config", {"num_hidden_layers": 1}, r"has tensors 'vision_model.model.layers.1.* that the network"),
    ],
)  # fmt: skip
def test_folders_that_are_wrong(
    folder: Path, tmp_path: Path, part: str | None, changes: dict[str, Any], message: str
) -> None:
    copy = copied(folder, tmp_path)
    fields = json.loads((copy / "config.json").read_text())
    fields = fields | (changes if part is None else {part: fields[part] | changes})
    (copy / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        load_model(copy)


def test_a_dense_network_with_vision(tmp_path: Path) -> None:
    """Llama Guard 4: no experts, no chunks, rotary in every layer."""
    model = metas_llama4.network(layers=(LayerKind(),) * 4, experts=None)
    nothing = dict.fromkeys(("moe_args", "attention_chunk_size", "nope_layer_interval"))
    folder = metas_llama4.write(model, tmp_path / "meta", 2, attn_temperature_tuning=False, **nothing)
    loaded = load_model(folder, device="cpu")
    assert_same_weights(loaded, model)
    save_model(loaded, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert written["model_type"] == "llama4"
    assert (written["text_config"]["moe_layers"], written["text_config"]["attention_chunk_size"]) == ([], 8192)
    assert load_model(tmp_path / "saved", device="cpu").config == loaded.config
