"""The vision encoder: transformers' rows, and configurations that no encoder can have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Llama4Config, Llama4VisionConfig, Llama4VisionModel
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector

from anyorder.errors import UserError
from anyorder.model.vision import Projector, VisionConfig, VisionModel, merged
from tests import vision

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128, "image_size": 56,
}  # fmt: skip


@pytest.mark.parametrize(("side", "patch"), [(56, 14), (28, 14), (40, 10), (24, 4), (84, 14)])
@pytest.mark.parametrize("kind", ["ramp", "noise"])
def test_rows_are_those_of_transformers(kind: str, side: int, patch: int) -> None:
    theirs = Llama4VisionConfig(
        **SHAPE | {"image_size": side, "patch_size": patch}, projector_input_dim=40, projector_output_dim=40,
        vision_output_dim=40, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    twin = Llama4VisionModel(theirs).eval()
    projector = Llama4MultiModalProjector(Llama4Config(vision_config=theirs, text_config={"hidden_size": 20}))
    for parameter in [*twin.parameters(), *projector.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    config = VisionConfig(**SHAPE | {"image_size": side, "patch_size": patch}, output_size=40)
    ours, ours_projector = VisionModel(config).eval(), Projector(config, 20)
    ours.load_state_dict(twin.state_dict())
    ours_projector.load_state_dict(projector.state_dict())
    pixels = torch.randn(3, 3, side, side)
    if kind == "ramp":
        pixels = torch.linspace(-1, 1, pixels.numel()).view_as(pixels)
    with torch.no_grad():
        expected = projector(twin(pixels).last_hidden_state)
        rows = ours_projector(ours(pixels))
    assert rows.shape == (3, config.rows_of_tile, 20)
    assert (rows - expected).abs().max() < 1e-5 * expected.abs().max()


def test_merging_takes_neighbours_row_by_row() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)
    assert merged(patches, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_a_network_draws_its_vision_and_embeds_rows_of_images() -> None:
    model = vision.network()
    assert model.vision_model is not None
    model.reset_parameters()
    assert 0 < model.vision_model.class_embedding.std() < 1
    rows = torch.randn(3, 32)
    shown = model.with_images(rows)
    ids = torch.tensor([[5, 33, 34, 0], [32, 1, 2, 31]])
    embedded = shown.embed(ids)
    assert torch.equal(embedded[0, 1:3], rows[1:])
    assert torch.equal(embedded[1, 0], rows[0])
    text = ids.masked_fill(ids >= 32, 0)
    assert torch.equal(embedded[ids < 32], model.embed(text)[ids < 32])
    for network, wrong in ((model, 32), (shown, 35)):
        with pytest.raises(
            UserError, match=f"there is the token id {wrong}: give ids from 0 to 31, from the tokenizer"
        ):
            network.embed(torch.tensor([[wrong]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 50}, "vision field 'image_size' is 50: give a multiple of 28, patch_size times merge"),
        (
            {"num_attention_heads": 3},
            "vision field 'hidden_size' is 32: give a multiple of 4 times num_attention_heads",
        ),
        ({"num_hidden_layers": 0}, "vision field 'num_hidden_layers' is 0: give a number above 0"),
        ({"hidden_size": "wide"}, "vision field 'hidden_size' is 'wide': give a whole number"),
        ({"image_token_id": -1}, "vision field 'image_token_id' is -1: give the id of a token"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisionConfig(**(SHAPE | {"output_size": 8} | changes))


def test_an_image_token_beyond_the_vocabulary() -> None:
    with pytest.raises(UserError, match="vision field 'image_token_id' is 6: give ids from 0 to 5"):
        vision.config(vocab_size=6, modes=())
