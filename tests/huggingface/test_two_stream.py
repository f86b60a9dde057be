"""`LlamaTwoStreamForCausalLM`: against transformers' untouched Llama on the doubled sequence, and as people use it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

import anyorder
from anyorder import AnyOrderConfig, AnyOrderForCausalLM, GroupPlan, LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from tests.huggingface.twins import SHAPE, VOCABULARY, assert_close, batch, llama
from tests.model.networks import network

GROUPINGS: dict[str, list[list[int]]] = {
    "default": [[0, 1, 2, 3, 4, 5]],
    "pairs": [[0, 0, 1, 1, 2, 2]],
    "halves": [[0, 0, 0, 1, 1, 1]],
    "custom": [[3, 0, 3, 7, 0, 5]],
    "each its own": [[0, 0, 1, 1, 2, 2], [5, 4, 3, 2, 1, 0], [1, 0, 1, 0, 1, 0]],
}


def two_stream(theirs: Any) -> LlamaTwoStreamForCausalLM:
    """The same backbone, with query rows large enough that they matter."""
    torch.manual_seed(3)
    ours = LlamaTwoStreamForCausalLM(theirs.config).eval()
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing.missing_keys) == {"query_rows.start.weight", "query_rows.position.weight"}
    return ours


def doubled(theirs: Any, ours: LlamaTwoStreamForCausalLM, ids: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' own forward pass on `[tokens ; query rows]`: content and query logits."""
    assert ours.query_rows is not None
    batch_size, length = ids.shape
    position = torch.arange(length).expand(batch_size, -1)
    rows = torch.cat((theirs.model.embed_tokens(ids), ours.query_rows(position)), 1)
    mask = torch.zeros(batch_size, 1, 2 * length, 2 * length, dtype=torch.bool)
    mask[:, 0, :length, :length] = ranks[:, None, :] <= ranks[:, :, None]
    mask[:, 0, length:, :length] = ranks[:, None, :] < ranks[:, :, None]
    with torch.no_grad():
        logits = theirs(
            inputs_embeds=rows, attention_mask=mask, position_ids=torch.cat((position, position), 1), use_cache=False
        ).logits
    return logits[:, :length], logits[:, length:]


@pytest.mark.parametrize("name", GROUPINGS)
def test_query_and_content_rows_equal_transformers_on_the_doubled_sequence(name: str) -> None:
    theirs = llama(attn_implementation="sdpa")
    ours = two_stream(theirs)
    ranks = torch.tensor(GROUPINGS[name]).expand(3, -1)
    ids = torch.randint(3, VOCABULARY, (3, 6))
    content, queries = doubled(theirs, ours, ids, ranks)
    with torch.no_grad():
        out = ours(ids, group_ids=ranks, output_hidden_states=True)
        assert out.hidden_states is not None
        seen = ranks > ranks.amin(1, keepdim=True)  # SDPA leaves rows that see nothing as they please
        assert_close(out.logits[seen], queries[seen])
        assert_close(ours.logits(out.hidden_states[-1]), content)
        if name == "default":
            assert torch.equal(ours(ids).logits, out.logits)
            assert_close(content, theirs(ids).logits)


def test_rows_that_see_nothing_are_predicted_from_their_place_alone() -> None:
    ours = two_stream(llama())
    with torch.no_grad():
        one, other = (ours(torch.randint(3, VOCABULARY, (1, 4)), group_ids=[[0, 0, 1, 1]]).logits for _ in range(2))
    torch.testing.assert_close(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 0], one[:, 1], atol=1e-2)
    assert not torch.allclose(one[:, 2:], other[:, 2:], atol=1e-2)


def test_a_query_never_sees_its_own_group() -> None:
    """Trap: reading from the content stream leaks the answer."""
    ours = two_stream(llama())
    ids = torch.randint(3, VOCABULARY, (1, 6))
    changed = ids.clone()
    changed[0, 2] = (ids[0, 2] + 1 - 3) % (VOCABULARY - 3) + 3
    with torch.no_grad():
        before, after = (ours(x, group_ids=[[0, 0, 1, 1, 2, 2]]).logits for x in (ids, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_no_key_and_is_not_predicted(left: bool) -> None:
    ours = two_stream(llama())
    ids, mask = batch(6, 3, 5, left=left)
    ranks = torch.randint(0, 4, ids.shape)
    labels = ids.clone()
    with torch.no_grad():
        out = ours(ids, group_ids=ranks, attention_mask=mask, labels=labels)
        assert bool(out.logits.isfinite().all())
        summed = 0.0
        for row in range(3):
            seen = mask[row].bool()
            alone = ours(ids[row, seen][None], group_ids=ranks[row, seen][None], labels=ids[row, seen][None])
            assert_close(out.logits[row, seen], alone.logits[0])
            summed += float(alone.loss * seen.sum())
    assert float(out.loss) == pytest.approx(summed / float(mask.sum()), rel=1e-5)


def test_the_loss_is_not_shifted() -> None:
    ours = two_stream(llama())
    ids = torch.randint(3, VOCABULARY, (2, 5))
    labels = ids.masked_fill(torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 0, 1]]).bool(), -100)
    out = ours(ids, group_ids=[[0, 1, 0, 2, 1], [4, 3, 2, 1, 0]], labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[labels != -100], labels[labels != -100]))
    total = ours(ids, group_ids=[[0, 1, 0, 2, 1], [4, 3, 2, 1, 0]], labels=labels, num_items_in_batch=12).loss
    torch.testing.assert_close(total, out.loss * 6 / 12)
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())
    as_tuple = ours(ids, labels=labels, return_dict=False)
    assert torch.equal(as_tuple[1], ours(ids).logits)


def test_a_grouping_stays_until_it_is_reset() -> None:
    ours = two_stream(llama())
    ids = torch.randint(3, VOCABULARY, (2, 6))
    with torch.no_grad():
        plain = ours(ids).logits
        ours.set_grouping([[0, 0, 1, 1, 2, 2]])
        pairs = ours(ids).logits
        assert torch.equal(pairs, ours(ids, group_ids=torch.tensor([[0, 0, 1, 1, 2, 2]] * 2)).logits)
        assert torch.equal(ours(ids, group_ids=[0, 1, 2, 3, 4, 5]).logits, plain)
        assert not torch.allclose(pairs, plain, atol=1e-3)
        ours.reset_grouping()
        assert torch.equal(ours(ids).logits, plain)
        ours.set_grouping(torch.tensor([[1, 0, 2, 3, 4, 5], [0, 0, 0, 0, 0, 1]]))
        different = ours(ids).logits
        ours.set_grouping(None)
        assert torch.equal(ours(ids).logits, plain)
    assert not torch.allclose(different[0], different[1], atol=1e-3)


@pytest.mark.parametrize("layers", ["plain", "NoPE", "window", "chunk"])
def test_the_content_pass_from_left_to_right_is_the_causal_network_bit_for_bit(layers: str) -> None:
    model = network(layers, modes=(LEFT_TO_RIGHT, ANY_ORDER))
    ids = torch.randint(0, 31, (2, 9))
    rows = GroupPlan.sequential([9, 9]).rows(queries=False)
    views = model.prepare(anyorder.visibility.groups(), rows.labels, n_keys=rows.n_keys, valid=rows.valid_BR)
    with torch.no_grad():
        content = model.logits(model.hidden(ids.gather(1, rows.content_BL), views))
        assert torch.equal(content, model(ids).logits)


# ---- where it comes from, and where it goes -----------------------------------------------------------


def test_a_plain_llama_is_a_start(tmp_path: Path) -> None:
    theirs = llama()
    theirs.save_pretrained(tmp_path / "llama")
    torch.manual_seed(0)
    ours = LlamaTwoStreamForCausalLM.from_pretrained(tmp_path / "llama")
    assert ours.config.default_mode == "any-order"
    for name, weight in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)
    assert ours.query_rows is not None
    assert float(ours.query_rows.position.weight.detach().std()) == pytest.approx(0.3, rel=0.1)
    ids = torch.randint(3, VOCABULARY, (1, 6))
    logits = ours.eval()(ids).logits

    ours.save_pretrained(tmp_path / "ours")
    again = LlamaTwoStreamForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(again(ids).logits, logits)
    model, _ = anyorder.load(tmp_path / "ours")
    assert isinstance(model, Llama)
    assert torch.equal(LlamaTwoStreamForCausalLM.of(model)(ids).logits, logits)
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert isinstance(causal, AnyOrderForCausalLM)
    assert_close(causal(ids).logits, theirs(ids).logits)
    anyorder.save(ours, None, tmp_path / "saved")
    assert torch.equal(LlamaTwoStreamForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits, logits)


@pytest.mark.parametrize("attention", [None, "eager", "sdpa", "flex_attention"])
def test_any_configuration_is_a_start(attention: str | None) -> None:
    config = LlamaConfig(**SHAPE, **({"attn_implementation": attention} if attention else {}))
    ours = LlamaTwoStreamForCausalLM(config)
    assert ours.backend == (attention or "sdpa")
    assert ours.config.modes == (ANY_ORDER, LEFT_TO_RIGHT)
    assert ours.query_rows is not None
    assert LlamaTwoStreamForCausalLM(ours.config).config is ours.config
    plain = AnyOrderConfig(backbone=ours.config.backbone.replace(modes=(LEFT_TO_RIGHT,)))
    assert LlamaTwoStreamForCausalLM(plain).config.has_query_rows
    assert not plain.has_query_rows, "what was given stays as it is"


def test_flash_attention_becomes_what_has_masks(caplog: pytest.LogCaptureFixture) -> None:
    config = LlamaConfig(**SHAPE)
    config._attn_implementation = "flash_attention_2"
    with caplog.at_level(logging.WARNING):
        ours = LlamaTwoStreamForCausalLM(config)
    assert "attention 'flash_attention_2' has no masks, which two streams need: 'sdpa' is taken" in caplog.text
    assert ours.backend == "sdpa"
    assert ours(torch.tensor([[5, 6, 7]]), group_ids=[[1, 0, 1]]).logits.shape == (1, 3, VOCABULARY)
    ours.set_attn_implementation("eager")
    assert ours.backend == "eager"
    ours.set_attn_implementation("flash_attention_2")
    assert ours.backend == "sdpa"


def test_trainer_teaches_it(tmp_path: Path) -> None:
    """Three texts of six tokens, each with a grouping of its own, are soon known."""
    torch.manual_seed(0)
    ours = LlamaTwoStreamForCausalLM(LlamaConfig(**SHAPE | {"initializer_range": 0.05}))
    ids = torch.randint(3, VOCABULARY, (3, 6)).tolist()
    data = [
        {"input_ids": row, "labels": row, "group_ids": group}
        for row, group in zip(ids, GROUPINGS["each its own"], strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=60, learning_rate=1e-2, per_device_train_batch_size=3, report_to=[],
        save_strategy="no", logging_steps=10, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=ours, args=arguments, train_dataset=data)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.3 * losses[0]


# ---- bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"group_ids": [[0, 1, 2]]},
            r"^group_ids has the shape \[1, 3\]: give one for each token, \[2, 4\], or set_gr",
        ),
        (
            {"group_ids": torch.zeros(2, 4)},
            r"^group_ids is torch.float32 of shape \[2, 4\]: give whole numbers \[batch",
        ),
        ({"group_ids": torch.zeros(1, 2, 4).long()}, r"^group_ids is torch.int64 of shape \[1, 2, 4\]: give whole num"),
        ({"group_ids": [[0.5] * 4] * 2}, r"^group_ids is \[\[0\.5, .*: give a list of whole numbers for each text"),
        ({"attention_mask": torch.ones(2, 3)}, r"^attention_mask has the shape \[2, 3\]: give \[2, 4\]\."),
        ({"attention_mask": torch.tensor([[1] * 4, [0] * 4])}, r"^sample 1 has nothing to predict: leave at least one"),
        ({"labels": torch.ones(2, 5).long()}, r"^labels has the shape \[2, 5\]: give \[2, 4\]\."),
        ({"input_ids": torch.ones(4).long()}, r"^input_ids is torch.int64 of shape \[4\]: give whole numbers \[batch,"),
    ],
)
def test_calls_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    ours = two_stream(llama())
    with pytest.raises(UserError, match=message):
        ours(**{"input_ids": torch.full((2, 4), 5), **arguments})


def test_transformers_loop_is_not_for_it() -> None:
    ours = two_stream(llama())
    with pytest.raises(UserError, match=r"^transformers' generate writes from left to right, and this network in any"):
        ours.generate(torch.tensor([[5]]))
    assert len(anyorder.generate(ours, None, [5, -1, 6, -1]).token_ids) == 2


def test_a_network_without_query_rows_gets_no_such_face() -> None:
    with pytest.raises(UserError, match="not by 'any-order': train it for that"):
        LlamaTwoStreamForCausalLM.of(network())


def test_adapters_train_beside_whole_query_rows(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ours = two_stream(llama())
    adapted = get_peft_model(ours, LoraConfig(target_modules=["q_proj"], modules_to_save=["query_rows"]))
    ids = torch.randint(3, VOCABULARY, (1, 4))
    adapted(input_ids=ids, labels=ids, group_ids=torch.tensor([[1, 0, 2, 1]])).loss.backward()
    learnt = {name for name, weight in adapted.named_parameters() if weight.grad is not None}
    assert any("lora_A" in name for name in learnt)
    assert any("query_rows.modules_to_save" in name for name in learnt)
    assert not any("embed_tokens" in name for name in learnt)


def test_checkpointing_changes_nothing_but_memory() -> None:
    ours = two_stream(llama()).train()
    ids = torch.randint(3, VOCABULARY, (2, 5))
    grads = []
    for again in (False, True):
        if again:
            ours.gradient_checkpointing_enable()
        ours.zero_grad()
        ours(ids, group_ids=[[1, 0, 2, 1, 0], [0, 1, 2, 3, 4]], labels=ids).loss.backward()
        grads.append([weight.grad.clone() for weight in ours.parameters() if weight.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_flash_attention_is_mapped_when_a_checkpoint_is_read_too(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    ours = LlamaTwoStreamForCausalLM.from_pretrained(
        tmp_path, attn_implementation="flash_attention_2", dtype=torch.bfloat16
    )
    assert (ours.backend, ours.dtype) == ("sdpa", torch.bfloat16)
    assert ours(torch.tensor([[5, 6]])).logits.dtype == torch.bfloat16


def test_attention_weights_are_those_of_the_query_rows() -> None:
    """In the order of the text, as transformers' eager attention has them on the doubled sequence."""
    theirs = llama(attn_implementation="eager")
    ours = two_stream(theirs)
    assert ours.query_rows is not None
    ids, ranks = torch.randint(3, VOCABULARY, (2, 6)), torch.tensor([[2, 0, 1, 1, 0, 3], [0, 1, 2, 3, 4, 5]])
    position = torch.arange(6).expand(2, -1)
    seen = torch.zeros(2, 1, 12, 12, dtype=torch.bool)
    seen[:, 0, :6, :6] = ranks[:, None, :] <= ranks[:, :, None]
    seen[:, 0, 6:, :6] = ranks[:, None, :] < ranks[:, :, None]
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    rows = torch.cat((theirs.model.embed_tokens(ids), ours.query_rows(position)), 1)
    expected = theirs(
        inputs_embeds=rows, attention_mask=mask, position_ids=torch.cat((position, position), 1), use_cache=False,
        output_attentions=True,
    ).attentions  # fmt: skip
    output = ours(ids, group_ids=ranks, output_attentions=True)
    some = (ranks > ranks.amin(1, keepdim=True))[:, None, :, None]
    assert output.attentions is not None
    for found, wanted in zip(output.attentions, expected, strict=True):
        assert_close(found, wanted[:, :, 6:, :6] * some)
    assert_close(output.logits, ours(ids, group_ids=ranks).logits)


@torch.no_grad()
def test_a_column_of_padding_alone() -> None:
    """As batches have that are padded to a multiple: it has no query row."""
    face = LlamaTwoStreamForCausalLM.of(adapt(network(), (ANY_ORDER,))).eval()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    expected = face(ids, labels=ids, output_hidden_states=True, output_attentions=True)
    for left, right in ((1, 0), (0, 2), (2, 1)):
        padded, mask = (torch.nn.functional.pad(part, (left, right)) for part in (ids, torch.ones_like(ids)))
        found = face(padded, attention_mask=mask, labels=padded, output_hidden_states=True, output_attentions=True)
        assert found.logits.shape[1] == padded.shape[1]
        columns = slice(left, left + 4)
        torch.testing.assert_close(found.logits[:, columns], expected.logits)
        torch.testing.assert_close(found.loss, expected.loss)
        assert found.hidden_states is not None
        assert found.attentions is not None
        torch.testing.assert_close(found.hidden_states[-1][:, columns], expected.hidden_states[-1])
        torch.testing.assert_close(found.attentions[0][..., columns, columns], expected.attentions[0])
