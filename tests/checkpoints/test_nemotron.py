"""Nemotron-Labs-Diffusion against a slow network that is written here from its published description.

Its three ways of writing are written out, too, each pass over the whole text, without a cache. Its body is also that of
transformers' Ministral 3, which the logits from left to right are compared with.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Ministral3Config, Ministral3ForCausalLM

import anyorder
from anyorder.checkpoints import load_model, save_model
from anyorder.checkpoints.config_json import config_from_json, form_to_json
from anyorder.checkpoints.masked_diffusion import named_form
from anyorder.decoding.left_to_right.self_speculation import SelfSpeculative
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import diffusion_log_prob
from anyorder.model.llama import Llama
from anyorder.model.modes import LEFT_TO_RIGHT, Mode, blocks
from anyorder.objectives import Autoregressive, Batch, BlockDiffusion, Mixture, predictions

Json = dict[str, Any]

LAYERS, HEADS, KV_HEADS, HEAD, HIDDEN, VOCABULARY, MASK, END, BLOCK = 2, 4, 2, 6, 16, 40, 9, 38, 4

ROPE: Json = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 16.0, "original_max_position_embeddings": 8,
    "llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip

FIELDS: Json = {
    "model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"],
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 20, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5, "rope_parameters": ROPE, "sliding_window": None, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": END, "mask_token_id": MASK, "block_size": BLOCK, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "dlm_paradigm": "bidirectional", "dlm_loss_weight": None,
    "ar_loss_weight": 1.0, "dp_varying_mask_ratio": False, "attn_implementation": "sdpa",
}  # fmt: skip


def tensors_of() -> dict[str, Tensor]:
    """Random tensors under the published names."""
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embed_tokens": (VOCABULARY, HIDDEN), "encoder.norm": (HIDDEN,), "diffusion_head": (VOCABULARY, HIDDEN)
    }  # fmt: skip
    for layer in range(LAYERS):
        of_layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (HEADS * HEAD, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
            "mlp.gate_proj": (20, HIDDEN), "mlp.up_proj": (20, HIDDEN), "mlp.down_proj": (HIDDEN, 20),
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }  # fmt: skip
        shapes |= {f"encoder.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    generator = torch.Generator().manual_seed(5)
    return {
        f"{name}.weight": 0.5 * torch.randn(shape, generator=generator) + (1.0 if "norm" in name else 0.0)
        for name, shape in shapes.items()
    }


class Literal:
    """The whole network again, head by head in float64, from the published tensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}

    def __call__(self, ids: list[int], open_from: int | None = None) -> Tensor:
        """`[length, vocabulary]`; rows see what is before them, and from `open_from` on all that is there."""
        place = torch.arange(len(ids))
        sees = place[:, None] >= place[None, :]
        if open_from is not None:
            sees[open_from:] = True
        rows = self["encoder.embed_tokens"][ids]
        for layer in range(LAYERS):
            name = f"encoder.layers.{layer}"
            rows = rows + self.attention(f"{name}.self_attn", self.norm(rows, f"{name}.input_layernorm"), sees)
            x = self.norm(rows, f"{name}.post_attention_layernorm")
            gate, up = x @ self[f"{name}.mlp.gate_proj"].T, x @ self[f"{name}.mlp.up_proj"].T
            rows = rows + (gate * gate.sigmoid() * up) @ self[f"{name}.mlp.down_proj"].T
        return self.norm(rows, "encoder.norm") @ self["diffusion_head"].T

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"{name}.weight"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self[name]

    def attention(self, place: str, x: Tensor, sees: Tensor) -> Tensor:
        q, k, v = (x @ self[f"{place}.{name}_proj"].T for name in "qkv")
        position = torch.arange(len(x), dtype=torch.float64)
        grown = 1 + 0.5 * torch.log(1 + torch.floor(position / 8))
        heads = []
        for number in range(HEADS):
            shared = number // (HEADS // KV_HEADS)
            query = self.turned(q[:, number * HEAD : (number + 1) * HEAD]) * grown[:, None]
            key = self.turned(k[:, shared * HEAD : (shared + 1) * HEAD])
            scores = (query @ key.T / math.sqrt(HEAD)).masked_fill(~sees, -math.inf)
            heads.append(scores.softmax(1) @ v[:, shared * HEAD : (shared + 1) * HEAD])
        return torch.cat(heads, 1) @ self[f"{place}.o_proj"].T

    def turned(self, x: Tensor) -> Tensor:
        """YaRN: pairs that turn often keep their speed, those that turn rarely are 16 times slower."""
        half = HEAD // 2
        speed = 500.0 ** (-2 * torch.arange(half, dtype=torch.float64) / HEAD)

        def pair_with(turns: float) -> float:
            return HEAD * math.log(8 / (turns * 2 * math.pi)) / (2 * math.log(500.0))

        low, high = max(math.floor(pair_with(32.0)), 0), min(math.ceil(pair_with(1.0)), HEAD - 1)
        slowed = ((torch.arange(half, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
        angle = torch.arange(len(x), dtype=torch.float64)[:, None] * (speed * (1 - slowed) + speed / 16 * slowed)
        one, two = x[:, :half], x[:, half:]
        return torch.cat((one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()), 1)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return tensors_of()


@pytest.fixture(scope="module")
def folder(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nemotron")
    (path / "config.json").write_text(json.dumps(FIELDS))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Llama:
    return load_model(folder, device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def literal(tensors: dict[str, Tensor]) -> Literal:
    return Literal(tensors)


# ------------------------------------------------------------------------------------------- the network


def test_its_modes_and_its_logits(model: Llama, literal: Literal) -> None:
    """Beyond two changes of the queries' factor, from left to right, which is the default."""
    assert model.config.modes == (LEFT_TO_RIGHT, blocks(MASK, BLOCK, causal_context=True))
    ids = torch.randint(VOCABULARY, (19,)).tolist()
    with torch.no_grad():
        torch.testing.assert_close(model(torch.tensor([ids])).logits[0], literal(ids), rtol=0, atol=1e-9)


def test_its_body_is_transformers_ministral(tensors: dict[str, Tensor], folder: Path) -> None:
    fields = {
        name: FIELDS[name] for name in FIELDS if name not in ("model_type", "architectures", "attn_implementation")
    }
    theirs = Ministral3ForCausalLM(Ministral3Config(**fields, pad_token_id=None)).eval()
    names = {"diffusion_head.weight": "lm_head.weight"}
    theirs.load_state_dict(
        {names.get(name, name.replace("encoder.", "model.")): tensor for name, tensor in tensors.items()}
    )
    ids = torch.randint(VOCABULARY, (2, 21))
    with torch.no_grad():
        expected = theirs(ids).logits
        found = load_model(folder, device="cpu", dtype="float32")(ids).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shards", [None, 3000])
def test_it_is_written_back(shards: int | None, tensors: dict[str, Tensor], folder: Path, tmp_path: Path) -> None:
    """To the same names, numbers and fields; and in our form."""
    model = load_model(folder, device="cpu")
    save_model(model, tmp_path / "back", form="nemotron", max_shard_size=shards)
    files = list((tmp_path / "back").glob("*.safetensors"))
    assert (len(files) > 1) == (shards is not None)
    back = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    same = FIELDS.keys() - {"attn_implementation", "dp_varying_mask_ratio", "rope_parameters"}
    assert {name: written[name] for name in same} == {name: FIELDS[name] for name in same}
    usual = {"beta_fast": 32.0, "beta_slow": 1.0}
    assert usual | written["rope_parameters"] == ROPE
    save_model(model, tmp_path / "ours")
    for place in ("back", "ours"):
        again = load_model(tmp_path / place, device="cpu")
        assert again.config == model.config
        assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())


# ------------------------------------------------------------------------------------------- its three ways of writing


def by_blocks(network: Literal, prompt: list[int], new: int, threshold: float | None) -> tuple[list[int], int]:
    """The published loop: a block begins with the next token from left to right, then masks become tokens."""
    x, passes = list(prompt), 0
    for _ in range(new // BLOCK):
        start = len(x)
        x = [*x, *[MASK] * BLOCK]
        logits = network(x[:start])[-1]
        logits[MASK] = -math.inf
        x[start] = int(logits.argmax())
        passes += 1
        while masked := [at for at in range(start, start + BLOCK) if x[at] == MASK]:
            probability = network(x, open_from=start).softmax(-1)
            probability[:, MASK] = 0
            passes += 1
            ranked = sorted(masked, key=lambda at: -float(probability[at].max()))
            sure = [at for at in ranked if threshold is not None and float(probability[at].max()) >= threshold]
            for at in sure or ranked[:1]:
                x[at] = int(probability[at].argmax())
        if END in x[start:]:
            return x[: x.index(END, start) + 1], passes
    return x, passes


def up_to_end(prompt: list[int], written: Any) -> list[int]:
    """What the published code returns, which drops the tokens of a block behind an end token."""
    ids = list(written)
    return [*prompt, *ids[: ids.index(END) + 1 if END in ids else len(ids)]]


PROMPTS = [[5, 6], [7, 8, 10, 10, 11, 12, 13], [3]]


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("threshold", [None, 0.06, 0.3])
def test_blocks(model: Llama, literal: Literal, threshold: float | None, use_cache: bool) -> None:
    """Token for token and pass for pass, each prompt alone; and in a ragged batch."""
    sampler = anyorder.DiffusionSampler(mode="blocks", cache="prefix" if use_cache else "none", stop_at_end=True)
    if threshold is not None:
        sampler = anyorder.DiffusionSampler.preset("nemotron", threshold=threshold).replace(cache=sampler.cache)
    texts = []
    for prompt in PROMPTS:
        expected, passes = by_blocks(literal, prompt, 12, threshold)
        out = anyorder.generate(model, None, prompt, order=sampler, max_new_tokens=12)
        assert up_to_end(prompt, out.token_ids) == expected
        assert out.passes == passes
        texts.append(expected)
    together = anyorder.generate(model, None, PROMPTS, order=sampler, max_new_tokens=12)
    assert [up_to_end(prompt, ids) for prompt, ids in zip(PROMPTS, together.token_ids, strict=True)] == texts
    assert anyorder.DiffusionSampler.preset("nemotron").commit.above == 0.9  # type: ignore[attr-defined]


def by_drafts(network: Literal, prompt: list[int], new: int, rows: int) -> tuple[list[int], int]:
    """The published loop (`linear_spec_generate`): a block of drafts in one pass, checked from left to right.

    The published one also drafts what is beyond the limit of length, and drops it.
    """
    x, passes, size = [*prompt, int(network(prompt)[-1].argmax())], 1, rows
    while len(x) < len(prompt) + new and x[-1] != END:
        start = len(x) - 1
        rows = min(size, len(prompt) + new - start)
        logits = network([*x, *[MASK] * (rows - 1)], open_from=start)
        logits[:, MASK] = -math.inf
        drafts = logits[start + 1 :].argmax(-1).tolist()
        checked = network([*x, *drafts])[start:].argmax(-1).tolist()
        passes += 2
        stay = 0
        while stay < rows - 1 and checked[stay] == drafts[stay]:
            stay += 1
        for token_id in checked[: stay + 1]:
            if len(x) < len(prompt) + new and x[-1] != END:
                x.append(token_id)
    return x, passes


@pytest.mark.parametrize("rows", [2, BLOCK, 7])
def test_self_speculation(model: Llama, literal: Literal, rows: int) -> None:
    """The published loop token for token and pass for pass; and the text is that of writing one by one."""
    for prompt in PROMPTS:
        expected, passes = by_drafts(literal, prompt, 14, rows)
        out = anyorder.generate(model, None, prompt, order=SelfSpeculative(draft=rows), max_new_tokens=14)
        assert [*prompt, *out.token_ids] == expected
        assert out.passes == passes
        plain = anyorder.generate(model, None, prompt, order="left-to-right", max_new_tokens=14, compile=False)
        assert out.token_ids == plain.token_ids
    assert out.trace.drafted > 0


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.7, 1.5]), rows=st.sampled_from([None, 3, 6]), new=st.integers(1, 9),
)  # fmt: skip
def test_drawn_tokens_are_those_without_drafts(
    model: Llama, lengths: list[int], seed: int, temperature: float, rows: int | None, new: int
) -> None:
    """In ragged batches, also with a stop condition, with the same log-probabilities, from the same seed."""
    source = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(10, END, (length,), generator=source).tolist() for length in lengths]
    options: Json = {
        "max_new_tokens": new,
        "temperature": temperature,
        "seed": seed,
        "top_k": 20 if temperature else None,
    }
    plain = anyorder.generate(model, None, prompts, order="left-to-right", compile=False, **options)
    out = anyorder.generate(model, None, prompts, order=SelfSpeculative(draft=rows), **options)
    assert out.token_ids == plain.token_ids
    events, expected = (
        {(event.sample_id, event.position): event.log_prob for event in text.trace.events} for text in (out, plain)
    )
    assert events == pytest.approx(expected, abs=1e-9)


def test_certain_drafts_stay(model: Llama) -> None:
    """A network that repeats one token drafts it, too: as many tokens as rows in each two passes."""
    sure = Llama(model.config).double().eval()
    sure.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, weight in sure.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()
        sure.lm_head.weight.zero_()
        sure.model.embed_tokens.weight.copy_(torch.ones_like(sure.model.embed_tokens.weight))
        sure.lm_head.weight[17] = 1.0
    out = anyorder.generate(sure, None, [5, 6], order=SelfSpeculative(), max_new_tokens=13)
    assert out.token_ids == [17] * 13
    assert out.passes == 1 + 2 * 3
    assert (out.trace.drafted, out.trace.accepted) == (9, 9)


# ------------------------------------------------------------------------------------------- learning and scoring


def test_training_sees_what_writing_sees(model: Llama, literal: Literal) -> None:
    """The logits of noised rows are those of the block on top of its causal context; and both ways train together."""
    ids = torch.randint(10, END, (11,)).tolist()
    objective = BlockDiffusion(mask_token_id=MASK, block_length=BLOCK, causal_context=True)
    assert objective.modes == model.config.modes[1:]
    inputs = objective.inputs(Batch.of([ids]), 0)
    noised = inputs.ids_BR[0, :11].tolist()
    with torch.no_grad():
        found = predictions(model, inputs)
    for logits, row in zip(found, inputs.row_N.tolist(), strict=True):
        start = row // BLOCK * BLOCK
        expected = literal([*ids[:start], *noised[start : start + BLOCK]], open_from=start)[row]
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert Mixture(parts=(Autoregressive(), objective), shares=(1, 1)).modes == model.config.modes


def test_a_block_of_one_token_is_scored_from_left_to_right(model: Llama, literal: Literal) -> None:
    """With one mask, the bound of a block is exact: the token's probability, given the context as writing sees it."""
    ids = torch.randint(10, END, (9,)).tolist()
    [bound] = diffusion_log_prob(model, [ids], [[8]], mode=model.config.modes[1])
    expected = literal([*ids[:8], MASK], open_from=8)[8].log_softmax(-1)[ids[8]]
    assert bound.log_prob == pytest.approx(float(expected), abs=1e-9)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True: this version reads networks of Nemotron-Labs-Diffusion "),
        ({"dlm_paradigm": "uniform"}, "dlm_paradigm is 'uniform': this version reads 'bidirectional', 'block_diff'"),
        ({"mask_token_id": None}, "mask_token_id is None: add the id of the mask token, a whole number."),
        ({"architectures": ["NemotronVLM"]}, "architectures is ['NemotronVLM']: of model_type 'nemotron_labs_diffus"),
        (
            {"rope_parameters": {"rope_theta": 500.0, "llama_4_scaling_beta": 0.5}},
            "rope field 'original_max_position_embeddings' is missing, which llama_4_scaling_beta needs: add it.",
        ),
        ({"model_type": "nemotron_labs_diffusion_vlm"}, "model_type is 'nemotron_labs_diffusion_vlm': this version"),
    ],
)
def test_configurations_that_are_refused(changes: Json, message: str) -> None:
    with pytest.raises(UserError) as error:
        config_from_json(FIELDS | changes)
    assert str(error.value).startswith(message)


def test_what_it_does_not_write(model: Llama) -> None:
    for prompt, order, message in (
        ([5, -1, -1, 6], "blocks", "prompt 0 has tokens behind a gap, but this network reads what is before a block "),
        ([-1, -1], "blocks", "prompt 0 is empty, but this network begins each block from what is before it: give at "),
    ):
        with pytest.raises(UserError) as error:
            anyorder.generate(model, None, prompt, order=order)
        assert str(error.value).startswith(message)
    for options, message in (
        ({"num_beams": 2}, "num_beams is 2 beside SelfSpeculative(draft=3): leave out one of them."),
        ({"use_cache": False}, "use_cache is False beside SelfSpeculative(draft=3): leave out one of them."),
    ):
        with pytest.raises(UserError) as error:
            anyorder.generate(model, None, [5], order=SelfSpeculative(draft=3), **options)
        assert str(error.value) == message
    with pytest.raises(UserError, match=r"^draft is 1: give a number of rows above 1, or leave speculation out\.$"):
        SelfSpeculative(draft=1)
    plain = Llama(model.config.replace(modes=(LEFT_TO_RIGHT,)))
    with pytest.raises(UserError, match=r"^this network writes by 'left-to-right', not by 'blocks': train it for"):
        anyorder.generate(plain, None, [5], order=SelfSpeculative())
    with pytest.raises(
        UserError, match=r"^form 'nemotron' is for networks that write from left to right and by masked"
    ):
        form_to_json(plain.config, named_form("nemotron"))


@pytest.mark.parametrize("changes", [{"name": "diffusion", "block_length": None}, {"shifted": True}])
def test_contexts_of_modes_without_such_blocks(changes: Json) -> None:
    fields: Json = {"name": "blocks", "shifted": False, "mask_token_id": 3, "block_length": 4, "causal_context": True}
    with pytest.raises(UserError, match=r"^causal_context is True for the .*mode '(blocks|diffusion)': leave it out"):
        Mode(**fields | changes)
