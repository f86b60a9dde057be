"""Text in, text out."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

import anyorder
from anyorder.api import _spell, _Speller
from anyorder.checkpoints.tokenizer import BYTES, SPECIAL, pieces_tokenizer
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary

WORDS = ["Once", "upon", "a", "time", "there", "was", "one", "little", "girl", "named", "Lily"]
TEXT = " ".join(WORDS)
BOS, END = 1, 2


def sentencepiece_tokenizer() -> PreTrainedTokenizerBase:
    """Whole words with their space, single bytes for the rest; texts begin with <s>."""
    prefixes = dict.fromkeys(f"▁{word}"[:end] for word in WORDS for end in range(1, len(word) + 2))
    pieces = list(dict.fromkeys([*SPECIAL, *BYTES, *prefixes, *"".join(WORDS)]))
    return pieces_tokenizer(pieces, [-float(index) for index in range(len(pieces))])


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """As GPT-2's: words with the space before them, single bytes for the rest; nothing is added to a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"Ġ{word}" for word in WORDS[1:]] + ["Once"]
    prefixes = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet, *prefixes])}
    merges = sorted(((token[:-1], token[-1]) for token in prefixes), key=lambda pair: len(pair[0]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def chain(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], **config: Any) -> Llama:
    """A Llama that writes `ids`, all different, each after the one before: the head knows who follows whom."""
    assert len(set(ids)) == len(ids)
    size = len(tokenizer) + len(tokenizer) % 2
    defaults: dict[str, Any] = {"eos_token_ids": (END,), "bos_token_id": BOS, "max_position_embeddings": 64}
    model = Llama(
        ModelConfig(
            vocab_size=size,
            hidden_size=size,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            rotary=Rotary(theta=10_000.0),
            **defaults | config,
        )
    )
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(ids):
            model.lm_head.weight[after, before] = 1.0
    return model


@pytest.fixture(params=[sentencepiece_tokenizer, byte_tokenizer])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    make: Callable[[], PreTrainedTokenizerBase] = request.param
    return make()


@pytest.fixture
def writer(tokenizer: PreTrainedTokenizerBase) -> Llama:
    """Writes `TEXT` and ends."""
    return chain(tokenizer, [*tokenizer(TEXT)["input_ids"], END])


@pytest.fixture
def random_model() -> Llama:
    """Random weights for prompts of token ids below 128."""
    config = ModelConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rotary=Rotary(theta=10_000.0),
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return Llama(config)


# ---- text ------------------------------------------------------------------------------------------


def test_prompt_and_text_spell_right(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    for words in range(1, len(WORDS)):
        prompt = " ".join(WORDS[:words])
        out = anyorder.generate(writer, tokenizer, prompt)
        assert isinstance(out.text, str)
        assert prompt + out.text == TEXT
        assert out.text.startswith(" ")


def test_a_single_prompt_gives_a_string_and_a_flat_list(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, "Once upon a")
    prompt, whole = tokenizer("Once upon a")["input_ids"], tokenizer(TEXT)["input_ids"]
    assert out.text == " time there was one little girl named Lily"
    assert out.token_ids == [*whole[len(prompt) :], END]
    assert out.sequences == [[*whole, END]]
    assert out.stopped == ["end"]
    assert out.passes == len(out.token_ids) == out.trace.passes
    assert out.trace.tokens == len(out.token_ids) - 1


def test_a_batch_gives_lists(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, ["Once upon a time there was", "Once", f"{TEXT}"[:-5]], max_new_tokens=3)
    whole = tokenizer(TEXT)["input_ids"]
    at = len(whole) - len(WORDS)
    assert out.text == [" one little girl", " upon a time", " Lily"]
    assert out.token_ids == [whole[at + 6 : at + 9], whole[at + 1 : at + 4], [whole[-1], END]]
    assert out.sequences == [whole[: at + 9], whole[: at + 4], [*whole, END]]
    assert out.stopped == ["length", "length", "end"]
    assert out.trace.tokens == 7


def test_a_list_of_one_is_a_batch(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, ["Once"], max_new_tokens=1)
    assert out.text == [" upon"]
    assert out.token_ids == [[out.sequences[0][-1]]]


def test_an_empty_prompt_becomes_the_token_that_begins_a_text() -> None:
    for tokenizer in (sentencepiece_tokenizer(), byte_tokenizer()):
        words = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        out = anyorder.generate(chain(tokenizer, [BOS, *words, END]), tokenizer, "")
        assert out.text == TEXT
        assert out.sequences == [[BOS, *words, END]]


def test_an_empty_prompt_without_such_a_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(UserError) as caught:
        anyorder.generate(chain(tokenizer, [3, 4], bos_token_id=None), tokenizer, ["Once", ""])
    message = "the prompt is '' and this network has no token that begins a text: give at least one word."
    assert str(caught.value) == message


def test_a_character_in_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut anywhere, a character belongs to where it is complete; it does not spoil the whole ones beside it."""
    ids = tokenizer("Once€ó")["input_ids"]
    start = len(tokenizer("Once")["input_ids"])
    assert len(ids) == start + 5
    model = chain(tokenizer, [*ids, END])
    for known in range(start, start + 5):
        for count in range(1, start + 6 - known):
            out = anyorder.generate(model, tokenizer, ids[:known], max_new_tokens=count)
            euro = "€" if known < start + 3 <= known + count else ""
            assert out.text == euro + ("ó" if known + count == start + 5 else "")


def test_words_after_bytes_that_are_no_character(tokenizer: PreTrainedTokenizerBase) -> None:
    once, upon = tokenizer("Once")["input_ids"], tokenizer("Once upon")["input_ids"][-1]
    stray = tokenizer("ó")["input_ids"][-1]
    model = chain(tokenizer, [*once, stray, upon, END])
    assert anyorder.generate(model, tokenizer, "Once").text == "\N{REPLACEMENT CHARACTER} upon"
    assert anyorder.generate(model, tokenizer, "Once", stop="up").stopped == ["stop"]


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("time there", " upon a "),  # two tokens
        ("me the", " upon a ti"),  # from the middle of one into the middle of the next
        (" there", " upon a time"),  # the space of a word is part of its token
        ("e", " upon a tim"),
        (["Lily", "little", "girl"], " upon a time there was one "),
        ("little girl named Lil", " upon a time there was one "),
        (" ", ""),
        ("Once", " upon a time there was one little girl named Lily"),  # only what was written counts
        ("e upon", " upon a time there was one little girl named Lily"),
    ],
)
def test_stop_strings(writer: Llama, tokenizer: PreTrainedTokenizerBase, stop: str | list[str], text: str) -> None:
    out = anyorder.generate(writer, tokenizer, "Once", stop=stop)
    assert out.text == text
    assert out.stopped == ["stop" if len(text) < 40 else "end"]


def test_token_ids_keep_the_stop_string(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, "Once", stop="me the")
    assert out.sequences == [tokenizer("Once upon a time there")["input_ids"]]


def test_stop_strings_per_row(writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    out = anyorder.generate(writer, tokenizer, ["Once upon a time", "Once", "Once upon"], stop=["time", "was"])
    assert out.text == [" there ", " upon a ", " a "]


def test_a_stop_string_inside_a_character_in_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Once€ó")["input_ids"]
    model = chain(tokenizer, [*ids, END])
    assert anyorder.generate(model, tokenizer, "Once", stop="€").token_ids == ids[-5:-2]
    assert anyorder.generate(model, tokenizer, "Once", stop="ó").text == "€"
    assert anyorder.generate(model, tokenizer, ids[:-4], stop="€").text == ""
    assert anyorder.generate(model, tokenizer, ids[:-2], stop="€").stopped == ["end"]


def test_a_special_token_stops_by_its_name(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("Once upon")["input_ids"]
    out = anyorder.generate(chain(tokenizer, [*ids, END, 0], eos_token_ids=()), tokenizer, "Once", stop="</s>")
    assert out.stopped == ["stop"]
    assert out.text == " upon"
    assert out.token_ids == [ids[-1], END]


def test_looking_for_stop_strings_reads_a_short_tail(
    writer: Llama, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    decode = type(tokenizer).decode

    def counting(self: PreTrainedTokenizerBase, ids: list[int], **options: bool) -> str:
        lengths.append(len(ids))
        return str(decode(self, ids, **options))

    monkeypatch.setattr(type(tokenizer), "decode", counting)
    anyorder.generate(writer, tokenizer, "Once", stop="xyz")
    assert len(lengths) > 2 * len(WORDS)
    assert sum(length > 3 for length in lengths) == 1, "only the text itself is decoded as a whole"


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="<▁")  # no special tokens, no marked spaces


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.sampled_from("aeo €ó語🙂\n\u0301") | LETTERS), data=st.data())
@pytest.mark.parametrize("make", [sentencepiece_tokenizer, byte_tokenizer])
def test_text_read_token_by_token_is_the_text(
    make: Callable[[], PreTrainedTokenizerBase], text: str, data: st.DataObject
) -> None:
    tokenizer = make()
    ids = tokenizer(f"Once {text}.")["input_ids"]
    cut = data.draw(st.integers(1, len(ids)))
    speller = _Speller(tokenizer, ids[:cut])
    read = "".join(speller.add(token_id) for token_id in ids[cut:])
    assert read == _spell(tokenizer, ids[:cut], ids[cut:])
    assert f"Once {text}.".endswith(read)


def test_stop_by_end_token_leaves_an_ordinary_end_token_out_of_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """An end token of the network need not be special in the tokenizer."""
    ids = tokenizer("Once upon a time")["input_ids"]
    out = anyorder.generate(chain(tokenizer, ids, eos_token_ids=(ids[-1],)), tokenizer, "Once")
    assert out.text == " upon a"
    assert out.token_ids == ids[-3:]


# ---- token ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[5, 6, 7], (5, 6, 7), torch.tensor([5, 6, 7])], ids=["list", "tuple", "tensor"])
def test_token_ids_need_no_tokenizer(random_model: Llama, prompt: list[int]) -> None:
    out = anyorder.generate(random_model, None, prompt, max_new_tokens=4)
    assert out.text is None
    assert len(out.token_ids) == 4
    assert out.sequences == [[5, 6, 7, *out.token_ids]]  # type: ignore[misc]


@pytest.mark.parametrize(
    "prompts",
    [[[5, 6, 7], [8, 9, 10]], torch.tensor([[5, 6, 7], [8, 9, 10]]), [torch.tensor([5, 6, 7]), [8, 9, 10]]],
    ids=["lists", "tensor", "list of both"],
)
def test_batches_of_token_ids(random_model: Llama, prompts: list[list[int]]) -> None:
    out = anyorder.generate(random_model, None, prompts, max_new_tokens=4)
    assert out.text is None
    for row, prompt in enumerate(([5, 6, 7], [8, 9, 10])):
        alone = anyorder.generate(random_model, None, prompt, max_new_tokens=4)
        assert out.token_ids[row] == alone.token_ids


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_batches_change_nothing(random_model: Llama, batch_size: int, temperature: float) -> None:
    model = random_model.double()
    prompts = [[1, 2], [1, 2], [3], [4, 5, 6, 7], [1, 2]]
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": temperature, "top_k": 40, "top_p": 0.9, "seed": 6}
    whole = anyorder.generate(model, None, prompts, **options)
    cut = anyorder.generate(model, None, prompts, batch_size=batch_size, **options)
    assert cut.sequences == whole.sequences
    assert sorted(event[1:4] for event in cut.trace.events) == sorted(event[1:4] for event in whole.trace.events)
    assert {event[:4] for event in cut.trace.events} == {event[:4] for event in whole.trace.events}
    assert cut.passes == 12 * len(range(0, 5, batch_size))
    assert (len({tuple(ids) for ids in whole.sequences}) == 5) == (temperature > 0), "rows draw independently"
    slow = anyorder.generate(model, None, prompts, use_cache=False, **options)
    assert slow.sequences == whole.sequences


def test_seeds(random_model: Llama) -> None:
    def write(seed: int) -> object:
        return anyorder.generate(random_model, None, [1, 2, 3], temperature=1.0, seed=seed).token_ids

    assert write(0) == write(0)
    assert write(0) != write(1)


# ---- mistakes --------------------------------------------------------------------------------------

KINDS = "give a string, token ids, or a list of strings or of token ids."


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (
            [5],
            {"order": "random"},
            "order is 'random': give 'left-to-right', which is the only way of writing at present.",
        ),
        ([5], {"order": 4}, "order is 4: give 'left-to-right', which"),
        ([5], {"batch_size": 0}, "batch_size is 0: give a whole number above 0, or None for all prompts at once."),
        ([5], {"max_new_tokens": 0}, "max_new_tokens is 0: give a whole number above 0."),
        ([5], {"max_new_tokens": 2.5}, "max_new_tokens is 2.5: give a whole number above 0."),
        ([5], {"temperature": -1.0}, "temperature is -1.0: give 0 for the most probable token, or a number above 0"),
        ([5], {"stop": "x"}, "stop is 'x' and tokenizer is None: give the tokenizer, which tells where text stops."),
        ([5], {"stop": ["x", ""]}, "stop is ['x', '']: give strings of at least one character."),
        ([5], {"stop": 3}, "stop is 3: give strings of at least one character."),
        ("Once", {}, "the prompt is text ('Once') and tokenizer is None: give the tokenizer, or token ids."),
        (["Once"], {}, "the prompt is text ('Once') and tokenizer is None: give the tokenizer, or token ids."),
        ([], {}, f"the prompt is []: {KINDS}"),
        ({"text": "Once " * 99}, {}, "the prompt is {'text': 'Once Once On...ce Once Once '}: give a string"),
        (None, {}, f"the prompt is None: {KINDS}"),
        (7, {}, f"the prompt is 7: {KINDS}"),
        ([[5], []], {}, "prompt 1 has 0 tokens: give at least one, such as the token that begins a text."),
        ([5, "x"], {}, "prompt 0 is 5: give strings only, or lists of whole numbers only."),
        ([[5], "x"], {}, "prompt 1 is 'x': give strings only, or lists of whole numbers only."),
        ([[5], [0.5]], {}, "prompt 1 is [0.5]: give strings only, or lists of whole numbers only."),
        (torch.tensor([0.5]), {}, "prompt 0 is 0.5: give strings only, or lists of whole numbers only."),
        ([[5], [128]], {}, "prompt 1 has the token id 128: give ids from 0 to 127, from the"),
        (
            [1] * 70,
            {},
            "prompt 0 has 70 tokens, and the network was trained on 64: "
            "shorten it to at most 63, which leaves room to write.",
        ),
    ],
)
def test_mistakes_are_named(random_model: Llama, prompt: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        anyorder.generate(random_model, None, prompt, **options)
    assert str(caught.value).startswith(message)


def test_a_mistake_in_the_last_batch_is_found_before_the_first_is_written(random_model: Llama) -> None:
    random_model.forward = random_model.hidden = None  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match="prompt 2 has the token id 999"):
        anyorder.generate(random_model, None, [[1], [2], [999]], batch_size=1)


# ---- checkpoints -----------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path, writer: Llama, tokenizer: PreTrainedTokenizerBase) -> None:
    anyorder.save(writer, tokenizer, tmp_path / "saved")
    model, again = anyorder.load(tmp_path / "saved", dtype="float64", device="cpu", attention="eager")
    assert again is not None
    assert next(model.parameters()).dtype == torch.float64
    assert anyorder.generate(model, again, "Once").text == anyorder.generate(writer, tokenizer, "Once").text


def test_a_checkpoint_without_tokenizer(tmp_path: Path, random_model: Llama) -> None:
    anyorder.save(random_model, None, tmp_path / "saved")
    model, tokenizer = anyorder.load(tmp_path / "saved", device="cpu")
    assert tokenizer is None
    assert anyorder.generate(model, None, [3, 4]).token_ids == anyorder.generate(random_model, None, [3, 4]).token_ids


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex_attention"])
def test_transformers_names_of_attention(tmp_path: Path, random_model: Llama, name: str) -> None:
    anyorder.save(random_model, None, tmp_path / "saved")
    model, _ = anyorder.load(tmp_path / "saved", device="cpu", attention=name)
    assert model.backend in ("eager", "sdpa", "flex", "flex_attention")


def test_convert(tmp_path: Path, random_model: Llama) -> None:
    anyorder.save(random_model, None, tmp_path / "saved")
    anyorder.convert(tmp_path / "saved", tmp_path / "half", dtype="bfloat16")
    model, _ = anyorder.load(tmp_path / "half", device="cpu")
    assert next(model.parameters()).dtype == torch.bfloat16


# ---- the package -----------------------------------------------------------------------------------


def test_public_names() -> None:
    assert anyorder.__version__ == "0.1.0"
    assert set(anyorder.__all__) <= set(dir(anyorder))
    assert all(callable(getattr(anyorder, name)) for name in anyorder.__all__)
    with pytest.raises(AttributeError, match="module 'anyorder' has no attribute 'lode'"):
        anyorder.lode  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    code = "import anyorder, sys; print(sorted({'torch', 'transformers', 'tokenizers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
