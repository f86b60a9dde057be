"""`LLaDAForMaskedLM`: logits of all tokens, from the folders as they are published and from ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, Trainer, TrainingArguments

import anyorder
from anyorder import AnyOrderConfig, AnyOrderForCausalLM, LLaDAForMaskedLM
from anyorder.errors import UserError
from anyorder.model.modes import diffusion
from tests.huggingface.twins import assert_close, batch, face_of, llama, positions
from tests.model.networks import network
from tests.published import bidirectional_logits, write_dream, write_llada


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() < 1e-5 * other.abs().max())


@pytest.mark.parametrize("through", [LLaDAForMaskedLM, AutoModelForMaskedLM, AutoModel])
def test_published_folders_load_without_remote_code(through: Any, tmp_path: Path) -> None:
    llada, dream = write_llada(tmp_path / "llada"), write_dream(tmp_path / "dream")
    ids = torch.randint(0, 96, (2, 11))
    face = through.from_pretrained(tmp_path / "llada")
    assert (type(face), face.dtype, face.training) == (LLaDAForMaskedLM, torch.float32, False)
    with torch.no_grad():
        assert close(face(ids).logits, bidirectional_logits(llada, ids))
        shifted = bidirectional_logits(dream, ids)
        expected = torch.cat((shifted[:, :1], shifted[:, :-1]), 1)  # as Dream's own sampler reads them
        assert close(through.from_pretrained(tmp_path / "dream")(ids).logits, expected)
    assert type(AutoConfig.from_pretrained(tmp_path / "dream")) is AnyOrderConfig


def test_padding_on_either_side_is_not_seen(tmp_path: Path) -> None:
    twin = write_llada(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids, mask = torch.randint(0, 96, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4], mask[1, 7:] = 0, 0
    with torch.no_grad():
        given = face(ids, attention_mask=mask).logits[mask.bool()]
        alone = torch.cat([face(row[seen.bool()][None]).logits[0] for row, seen in zip(ids, mask, strict=True)])
    assert close(given, bidirectional_logits(twin, ids, mask)[mask.bool()])
    assert close(given, alone)


def test_labels_are_of_the_tokens_themselves(tmp_path: Path) -> None:
    write_llada(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 80, (2, 9))
    hidden = torch.rand(2, 9) < 0.5
    output = face(ids.masked_fill(hidden, 90), labels=ids.masked_fill(~hidden, -100))
    expected = F.cross_entropy(output.logits[hidden], ids[hidden])
    torch.testing.assert_close(output.loss, expected)
    total = face(ids.masked_fill(hidden, 90), labels=ids.masked_fill(~hidden, -100), num_items_in_batch=100).loss
    torch.testing.assert_close(total, expected * hidden.sum() / 100)
    output.loss.backward()
    assert face.lm_head.weight.grad is not None
    _, logits, states = face(ids, labels=ids, output_hidden_states=True, return_dict=False)
    assert (len(states), logits.shape) == (3, (2, 9, 96))
    rows = face(inputs_embeds=face.model.embed_tokens(ids), position_ids=torch.arange(9)[None])
    torch.testing.assert_close(rows.logits, logits)


def test_what_is_saved_is_ours_and_loads_everywhere(tmp_path: Path) -> None:
    write_llada(tmp_path / "published")
    face = LLaDAForMaskedLM.from_pretrained(tmp_path / "published")
    face.save_pretrained(tmp_path / "ours")
    assert "model.layers.0.mlp.gate_proj.weight" in load_file(tmp_path / "ours" / "model.safetensors")
    ids = torch.randint(0, 96, (1, 9))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    model, _ = anyorder.load(tmp_path / "ours", device="cpu")
    assert again.config.modes == model.config.modes == face.config.modes
    with torch.no_grad():
        assert torch.equal(again(ids).logits, face(ids).logits)
        assert torch.equal(LLaDAForMaskedLM.of(model)(ids).logits, face(ids).logits)


def test_gradient_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    write_llada(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path).train()
    ids = torch.randint(0, 80, (2, 9))
    gradients = []
    for enable in (False, True):
        if enable:
            face.gradient_checkpointing_enable()
        face.zero_grad()
        face(ids, labels=ids).loss.backward()
        gradients.append(face.model.layers[0].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_trainer_trains_it(tmp_path: Path) -> None:
    write_llada(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids = torch.randint(0, 80, (8,))
    data = [{"input_ids": torch.full((8,), 90), "labels": ids}] * 40
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=40, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    before = face(data[0]["input_ids"][None], labels=ids[None]).loss.item()
    Trainer(face, arguments, train_dataset=data).train()
    assert face(data[0]["input_ids"][None], labels=ids[None]).loss.item() < 0.5 * before


def test_mistakes_are_told_with_the_remedy(tmp_path: Path) -> None:
    write_llada(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert not face.can_generate()
    with pytest.raises(UserError, match=r"generate writes from left to right.*use anyorder\.generate\(model"):
        face.generate(ids)
    with pytest.raises(UserError, match=r"this network writes by 'left-to-right', not by 'diffusion': train it"):
        LLaDAForMaskedLM.of(network())(ids)
    with pytest.raises(UserError, match=r"this network writes by 'diffusion' and has no logits for the next token"):
        AnyOrderForCausalLM.from_pretrained(tmp_path)(ids)
    with pytest.raises(UserError, match="both or neither of input_ids and inputs_embeds are given: give one"):
        face()
    with pytest.raises(UserError, match=r"attention_mask has the shape \[1, 3\]: give \[1, 4\]\."):
        face(ids, attention_mask=torch.ones(1, 3))


def test_attention_weights() -> None:
    """Those of transformers' eager attention where every row sees all that is no padding."""
    theirs = llama(attn_implementation="eager")
    backbone = face_of(theirs).config.backbone.replace(modes=(diffusion(mask_token_id=5),))
    face = LLaDAForMaskedLM(AnyOrderConfig(backbone=backbone)).eval()
    face.load_state_dict(theirs.state_dict())
    ids, mask = batch(9, 5)
    hidden = torch.where(mask[:, None, None] == 1, 0.0, torch.finfo(torch.float32).min)
    expected = theirs(
        ids, attention_mask=hidden.expand(-1, -1, 9, -1), position_ids=positions(mask), output_attentions=True
    ).attentions
    output = face(ids, attention_mask=mask, output_attentions=True)
    real = mask[:, None, :, None]  # rows of padding see tokens too
    assert output.attentions is not None
    for found, wanted in zip(output.attentions, expected, strict=True):
        assert_close(found * real, wanted * real)
    assert_close(output.logits, face(ids, attention_mask=mask).logits)


# ------------------------------------------------------------------------------------------------ padding and positions


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LLaDAForMaskedLM]:
    faces = {}
    for name, write in (("llada", write_llada), ("dream", write_dream)):
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        faces[name] = LLaDAForMaskedLM.from_pretrained(folder)
    return faces


@pytest.mark.parametrize("name", ["llada", "dream"])
@settings(max_examples=20, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=2, max_size=9).filter(any))
def test_a_text_is_read_alike_whatever_padding_is_around_and_in_it(
    name: str, mask: list[bool], published: dict[str, LLaDAForMaskedLM]
) -> None:
    face = published[name]
    valid = torch.tensor([mask])
    ids, labels = torch.randint(0, 96, (2, 1, len(mask)))
    alone = face(ids[valid][None], labels=labels[valid][None])
    position = (valid.cumsum(1) - 1).clamp(min=0)
    for given_positions in (None, position, position + 5):
        padded = face(ids, attention_mask=valid.long(), labels=labels, position_ids=given_positions)
        assert close(padded.logits[valid], alone.logits[0])
        torch.testing.assert_close(padded.loss, alone.loss)


@torch.no_grad()
def test_shifted_logits_follow_positions(tmp_path: Path) -> None:
    """A token is predicted by the row one position before it, wherever that row is."""
    write_dream(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids, order = torch.randint(0, 96, (1, 7)), torch.randperm(7)
    found = face(ids[:, order], position_ids=order[None]).logits
    assert close(found, face(ids).logits[:, order])
    with pytest.raises(UserError, match="position_ids has a position twice in one row, but texts packed into a row"):
        face(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))


def test_arguments_of_other_networks(tmp_path: Path) -> None:
    write_llada(tmp_path)
    face = LLaDAForMaskedLM.from_pretrained(tmp_path)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert face(ids, use_cache=False, output_attentions=None, token_type_ids=ids, past_key_values=None).loss is None
    for name, value, message in (
        ("use_cache", True, "use_cache is given, but this network writes by masked diffusion and is called without"),
        ("past_key_values", (1,), "leave it out .and use LoRA, IA3 or prompt tuning"),
        (
            "atention_mask",
            ids,
            "argument 'atention_mask' is unknown to LLaDAForMaskedLM: leave it out, or give one of inp",
        ),
    ):
        with pytest.raises(UserError, match=message):
            face(ids, **{name: value})
    with pytest.raises(UserError, match=r"generate writes from left to right.*use anyorder\.generate\(model"):
        face.prepare_inputs_for_generation(ids)
