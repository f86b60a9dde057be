"""One pass of the face, against transformers' classes on the same weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from anyorder import LLaDAForMaskedLM, LlamaTwoStreamForCausalLM
from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderForCausalLM, PastKeyValues
from anyorder.huggingface.versions import CACHE_NAMES
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT, Mode, diffusion
from anyorder.visibility import causal
from tests.huggingface.twins import (
    SHAPE,
    Twins,
    assert_close,
    batch,
    face_of,
    llama,
    positions,
    twins,
)

LENGTHS = (11, 4, 8)

FAMILY: dict[str, Any] = {
    "Llama": llama,
    "tied Llama": lambda: llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "Mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)).eval(),
    "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)).eval(),
    "SmolLM3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SHAPE, no_rope_layers=[1, 0, 1])).eval(),
}


@pytest.fixture
def pair() -> Twins:
    return twins()


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("name", FAMILY)
@torch.no_grad()
def test_padding(name: str, left: bool) -> None:
    theirs: PreTrainedModel = FAMILY[name]()
    ours = face_of(theirs)
    ids, mask = batch(*LENGTHS, left=left)
    expected = theirs(ids, attention_mask=mask, position_ids=positions(mask)).logits
    found = ours(ids, attention_mask=mask).logits
    assert_close(found[mask.bool()], expected[mask.bool()])
    for row, length in enumerate(LENGTHS):
        alone = ours(ids[row, mask[row].bool()][None]).logits[0]
        assert_close(found[row, mask[row].bool()], alone)
        assert len(alone) == length


@torch.no_grad()
def test_the_plain_network_says_the_same(pair: Twins) -> None:
    ours, _ = pair
    plain = Llama(ours.config.backbone)
    plain.load_state_dict(ours.state_dict())
    ids, mask = batch(*LENGTHS)
    found, expected = (model(ids, attention_mask=mask).logits[mask.bool()] for model in (ours, plain))
    assert_close(found, expected)


def test_loss_and_gradients(pair: Twins) -> None:
    ids, mask = batch(*LENGTHS, left=False)
    labels = ids.masked_fill(mask == 0, -100)
    for options in ({}, {"num_items_in_batch": torch.tensor(7)}, {"num_items_in_batch": 7}):
        losses = []
        for model in pair:
            model.zero_grad()
            losses.append(model(ids, attention_mask=mask, labels=labels, **options).loss)
            losses[-1].backward()
        assert_close(*losses)
        expected = dict(pair[1].named_parameters())
        for name, parameter in pair[0].named_parameters():
            assert_close(parameter.grad, expected[name].grad)


@torch.no_grad()
def test_inputs_embeds(pair: Twins) -> None:
    ours, _ = pair
    ids, mask = batch(*LENGTHS)
    embeds = ours.get_input_embeddings()(ids)
    found = ours(inputs_embeds=embeds, attention_mask=mask).logits
    assert torch.equal(found, ours(ids, attention_mask=mask).logits)


@torch.no_grad()
def test_hidden_states(pair: Twins) -> None:
    ids, _ = batch(9)
    ours, theirs = (model(ids, output_hidden_states=True).hidden_states for model in pair)
    assert len(ours) == len(theirs) == 4
    for found, expected in zip(ours, theirs, strict=True):
        assert_close(found, expected)
    assert not pair[0].model.layers[0]._forward_pre_hooks
    assert pair[0](ids).hidden_states is None
    pair[0].config.output_hidden_states = True
    assert len(pair[0](ids).hidden_states) == 4


@torch.no_grad()
def test_tuples(pair: Twins) -> None:
    ours, _ = pair
    ids, _ = batch(9)
    output = ours(ids, labels=ids, use_cache=True, output_hidden_states=True)
    loss, logits, past, states = ours(ids, labels=ids, use_cache=True, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert isinstance(past, PastKeyValues)
    assert len(states) == 4
    ours.config.return_dict = False
    assert isinstance(ours(ids), tuple)


@pytest.mark.parametrize("wanted", [0, 1, 4, torch.tensor([0, 3])], ids=["all", "last", "four", "chosen"])
@torch.no_grad()
def test_logits_to_keep(pair: Twins, wanted: int | Tensor) -> None:
    ids, _ = batch(9)
    assert_close(*(model(ids, logits_to_keep=wanted).logits for model in pair))


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_attention_implementations(pair: Twins, name: str) -> None:
    ours, theirs = pair
    ids, mask = batch(*LENGTHS)
    ours.set_attn_implementation(name)
    assert ours.backend == name
    expected = theirs(ids, attention_mask=mask, position_ids=positions(mask)).logits
    assert_close(ours(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()])


@torch.no_grad()
def test_half_precision() -> None:
    ours, theirs = twins()
    ids, _ = batch(9)
    expected = theirs(ids).logits
    found = ours.to(torch.bfloat16)(ids).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


# ------------------------------------------------------------------------------------------------ positions


@torch.no_grad()
def test_positions_can_be_given(pair: Twins) -> None:
    """Only differences count, and columns say who comes after whom."""
    ids, _ = batch(9)
    position = torch.tensor([[0, 1, 2, 7, 8, 9, 11, 12, 13]])
    mask = torch.ones_like(ids)
    ours, theirs = (model(ids, attention_mask=mask, position_ids=position).logits for model in pair)
    assert_close(ours, theirs)
    assert not torch.allclose(ours, pair[0](ids).logits, atol=1e-3)


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_packed_texts_do_not_see_each_other(name: str) -> None:
    theirs: PreTrainedModel = FAMILY[name]()
    ours = face_of(theirs)
    ids, _ = batch(12)
    position = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4]])
    found = ours(ids, position_ids=position).logits
    assert_close(found, theirs(ids, position_ids=position, use_cache=False).logits)
    assert_close(found[:, 5:7], ours(ids[:, 5:7]).logits)
    with torch.no_grad():
        output = ours(ids, position_ids=position)
    assert_close(output.logits, found)
    assert output.past_key_values is None
    with pytest.raises(UserError, match="position_ids begins anew within a row: give use_cache=False"):
        ours(ids, position_ids=position, use_cache=True)


# ------------------------------------------------------------------------------------------------ the cache


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("steps", [(11, 1, 1, 1), (5, 4, 5), (1,) * 14], ids=["tokens", "chunks", "from the first"])
@torch.no_grad()
def test_cached_equals_uncached(name: str, steps: tuple[int, ...]) -> None:
    ours = face_of(FAMILY[name]())
    ids, mask = batch(14, 6, 11)
    expected = ours(ids, attention_mask=mask, use_cache=False).logits
    past, found, end = None, [], 0
    for step in steps:
        begin, end = end, end + step
        output = ours(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=past, use_cache=True)
        past = output.past_key_values
        found.append(output.logits)
        assert past.get_seq_length() == end
    assert_close(torch.cat(found, 1)[mask.bool()], expected[mask.bool()])


@torch.no_grad()
def test_the_mask_may_be_left_out_after_the_prompt(pair: Twins) -> None:
    """Slots remember which columns were padding."""
    ours, _ = pair
    ids, mask = batch(10, 6)
    expected = ours(ids, attention_mask=mask, use_cache=False).logits[:, -3:]
    past = ours(ids[:, :-3], attention_mask=mask[:, :-3]).past_key_values
    assert_close(ours(ids[:, -3:], past_key_values=past).logits, expected)


@torch.no_grad()
def test_a_cache_can_be_cut_chosen_from_and_repeated(pair: Twins) -> None:
    ours, _ = pair
    ids, mask = batch(10, 6, 8)
    expected = ours(ids, attention_mask=mask, use_cache=False).logits[:, -4:]

    def past() -> PastKeyValues:
        made = ours(ids, attention_mask=mask).past_key_values
        made.crop(-4)
        assert made.get_seq_length() == 6
        return made

    assert_close(ours(ids[:, -4:], attention_mask=mask, past_key_values=past()).logits, expected)
    chosen = torch.tensor([2, 0, 0])
    reordered = past()
    reordered.reorder_cache(chosen)
    assert_close(ours(ids[chosen, -4:], past_key_values=reordered).logits, expected[chosen])
    selected = past()
    selected.batch_select_indices(chosen[:2])
    assert_close(ours(ids[chosen[:2], -4:], past_key_values=selected).logits, expected[chosen[:2]])
    repeated = past()
    repeated.batch_repeat_interleave(2)
    twice = torch.tensor([0, 0, 1, 1, 2, 2])
    assert_close(ours(ids[twice, -4:], past_key_values=repeated).logits, expected[twice])
    emptied = past()
    emptied.reset()
    assert emptied.get_seq_length() == 0
    found = ours(ids, attention_mask=mask, past_key_values=emptied).logits
    assert_close(found[:, -4:], expected)


def test_what_transformers_asks_a_cache(pair: Twins) -> None:
    ours, _ = pair
    past = ours(batch(5)[0], use_cache=True).past_key_values
    assert len(past) == 3
    assert past.get_max_length() == -1
    assert past.get_mask_sizes(2, 0) == (7, 0)
    assert past.is_croppable
    assert not past.is_compileable
    with pytest.raises(UserError, match="crop is 3: give the number of tokens to remove, as a negative number"):
        past.crop(3)


def test_caches_are_made_where_no_gradients_are_recorded(pair: Twins) -> None:
    ours, _ = pair
    ids, _ = batch(5)
    assert ours(ids).past_key_values is None
    assert ours(ids, use_cache=True).past_key_values is not None
    with torch.no_grad():
        assert ours(ids).past_key_values is not None
        ours.config.use_cache = False
        assert ours(ids).past_key_values is None


# ------------------------------------------------------------------------------------------------ who is who


def test_a_face_shares_the_network(pair: Twins) -> None:
    plain = Llama(pair[0].config.backbone.replace(tie_word_embeddings=True), backend="flex").train()
    face = AnyOrderForCausalLM.of(plain)
    assert face.training
    assert face.backend == "flex_attention"
    assert face.config.dtype == torch.float32
    assert dict(face.named_parameters(remove_duplicate=False)).keys() == plain.state_dict().keys()
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        assert face.get_parameter(name) is parameter
    assert AnyOrderForCausalLM.of(face) is face
    assert not AnyOrderForCausalLM.of(plain.eval()).training
    for ours, theirs in (("auto", "sdpa"), ("eager", "eager"), ("flex_attention", "flex_attention")):
        plain.backend = ours
        assert AnyOrderForCausalLM.of(plain).backend == theirs


@torch.no_grad()
def test_a_face_is_a_network(pair: Twins) -> None:
    ours, theirs = pair
    ids, _ = batch(6)
    views = ours.prepare(causal(), {"position": torch.arange(6)[None]})
    assert_close(ours.logits(ours.hidden(ids, views)), theirs(ids).logits)
    assert isinstance(ours, Llama)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "both or neither of input_ids and inputs_embeds are given: give one of them"),
        (
            {"input_ids": torch.zeros(1, 3, dtype=torch.long), "inputs_embeds": torch.zeros(1, 3, 32)},
            "both or neither of input_ids and inputs_embeds are given",
        ),
        (
            {"input_ids": torch.zeros(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 1, 3, 3)},
            r"attention_mask has the shape \[2, 1, 3, 3\]: give \[batch, tokens so far\], \[2, 3\]",
        ),
        (
            {
                "input_ids": torch.zeros(1, 3, dtype=torch.long),
                "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
            },
            "cache is a EncoderDecoderCache: leave it out, or give what an earlier pass returned",
        ),
    ],
    ids=["nothing", "both", "4-D mask", "foreign cache"],
)
def test_refused(pair: Twins, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair[0](**options)


def test_a_cache_of_another_batch_is_refused(pair: Twins) -> None:
    ours, _ = pair
    past = ours(batch(5, 5)[0], use_cache=True).past_key_values
    with pytest.raises(UserError, match="cache has 2 texts, but there are 1: give as many"):
        ours(batch(1)[0], past_key_values=past)


def test_misspelt_options_are_refused(pair: Twins) -> None:
    with pytest.raises(
        UserError, match=r"^argument 'atention_mask' is unknown to AnyOrderForCausalLM: leave it out, or"
    ):
        pair[0](batch(5)[0], atention_mask=torch.ones(1, 5))


@torch.no_grad()
def test_what_tools_pass_to_other_networks(pair: Twins) -> None:
    """Arguments of transformers 4 and of some tokenizers, which change nothing."""
    ours, theirs = pair
    ids, _ = batch(7)
    zeros = torch.zeros_like(ids)
    found = ours(ids, token_type_ids=zeros, decoder_input_ids=None, cache_position=torch.arange(7), use_cache=True)
    assert_close(found.logits, theirs(ids).logits)
    more, _ = batch(2)
    again = ours(more, cache_position=torch.arange(7, 9), past_key_values=found.past_key_values)
    assert_close(again.logits, theirs(torch.cat((ids, more), 1)).logits[:, 7:])
    with pytest.raises(UserError, match="argument 'token_type_ids' is unknown to AnyOrderForCausalLM"):
        ours(ids, token_type_ids=zeros + 1)
    with pytest.raises(UserError, match=r"^cache_position is \[1, 2\]: .* give the columns from 0 to 1\.$"):
        ours(more, cache_position=torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("mask", "value"),
    [
        (torch.tensor([[1, 1, 1, 2, 2]]), "2"),  # numbers of texts packed into a row
        (torch.tensor([[0.0, 0.0, 0.0, 0.0, -1e9]]), "-1e+09"),  # added to scores
        (torch.tensor([[1.0, 1.0, 1.0, 1.0, float("nan")]]), "nan"),
    ],
)
@pytest.mark.parametrize("mode", [LEFT_TO_RIGHT, diffusion(3), ANY_ORDER])
def test_masks_with_other_values_are_refused(mode: Mode, mask: Tensor, value: str) -> None:
    """They were read as 0 and 1, so that packed texts saw each other."""
    network = adapt(Llama(face_of(llama()).config.backbone), (mode,))
    face = {"left-to-right": AnyOrderForCausalLM, "diffusion": LLaDAForMaskedLM}.get(
        mode.name, LlamaTwoStreamForCausalLM
    )
    for model in (network, face.of(network)):
        with pytest.raises(UserError, match=f"^attention_mask has the value {re.escape(value)}: give 1 for"):
            model(batch(5)[0], attention_mask=mask)
        ids = batch(5)[0]
        for same in (torch.tensor([[0, 1, 1, 1, 1]]), torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0]])):
            expected = model(ids, attention_mask=same.bool()).logits
            assert torch.equal(model(ids, attention_mask=same).logits, expected)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(5), r"input_ids is torch.float32 of shape \[5\]: give whole numbers \[batch, length\]"),
        (torch.zeros(5, dtype=torch.long), r"input_ids is torch.int64 of shape \[5\]"),
        ([[1, 2]], r"input_ids is of type list: give a tensor of whole numbers \[batch, length\]"),
    ],
)
def test_what_is_no_batch_of_tokens_is_refused(ids: Any, message: str) -> None:
    network = Llama(face_of(llama()).config.backbone)
    for model in (network, AnyOrderForCausalLM.of(network)):
        with pytest.raises(UserError, match=message):
            model(ids)


@pytest.mark.parametrize("mode", [diffusion(3), ANY_ORDER])
def test_networks_without_logits_for_the_next_token(pair: Twins, mode: Mode) -> None:
    """Whatever causal tool asks, it would predict wrongly."""
    ours, _ = pair
    ours.config.modes = (mode,)
    ids, mask = batch(5)
    with pytest.raises(UserError, match=f"writes by '{mode.name}' and has no .*: load a network"):
        ours(ids)
    with pytest.raises(UserError, match="no logits for the next token"):
        ours(ids, labels=ids)
    with pytest.raises(UserError, match="no logits for the next token"):
        ours.generate(ids, attention_mask=mask, max_new_tokens=2)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_attention_weights(pair: Twins, left: bool) -> None:
    """Those of transformers' eager attention; with a cache, keys stay in the order of columns."""
    ours, _ = pair
    theirs = llama(attn_implementation="eager")
    theirs.load_state_dict(ours.state_dict())
    ids, mask = batch(9, 5, left=left)
    expected = theirs(ids, attention_mask=mask, position_ids=positions(mask), output_attentions=True).attentions
    output = ours(ids, attention_mask=mask, output_attentions=True)
    past = ours(ids[:, :4], attention_mask=mask[:, :4], use_cache=True).cache
    later = ours(ids[:, 4:], attention_mask=mask, cache=past, output_attentions=True).attentions
    real = mask[:, None, :, None]
    assert len(output.attentions) == len(later) == 3
    for found, of_cached, wanted in zip(output.attentions, later, expected, strict=True):
        assert_close(found * real, wanted * real)
        assert_close(of_cached * real[:, :, 4:], (wanted * real)[:, :, 4:])
    assert_close(output.logits[mask == 1], ours(ids, attention_mask=mask).logits[mask == 1])


@pytest.mark.parametrize("written", CACHE_NAMES)
@pytest.mark.parametrize("read", CACHE_NAMES)
def test_the_cache_has_both_names(pair: Twins, written: str, read: str) -> None:
    """Whatever the installed transformers calls it."""
    ours, _ = pair
    ids, _ = batch(9)
    expected = ours(ids).logits[:, 5:]
    output = ours(ids[:, :5], use_cache=True)
    assert output[read] is getattr(output, read)
    assert_close(ours(ids[:, 5:], **{written: output[read]}).logits, expected)


def test_the_cache_is_given_once(pair: Twins) -> None:
    ours, _ = pair
    past = ours(batch(5)[0], use_cache=True).cache
    with pytest.raises(UserError, match=r"cache and past_key_values are both given.*: give one of them"):
        ours(batch(5)[0], cache=past, past_key_values=past)
