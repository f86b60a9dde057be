"""SentencePiece models of every kind, against SentencePiece itself."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer

from anyorder.checkpoints import load_tokenizer, save_tokenizer
from anyorder.errors import UserError

TEXTS = [
    f"the cat number {n} sat on the mat and the dog ran to the man, who said: no {n * 7}! é 日本語 <sep> ﬁ"
    for n in range(300)
]


def train(**options: Any) -> bytes:
    model = io.BytesIO()
    defaults = {"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, **defaults | options)
    return model.getvalue()


def probes() -> list[str]:
    rng = random.Random(0)
    parts = [
        " ",
        "  ",
        " " * 9,
        "\n",
        "\t",
        "\r\n",
        "é",
        "本",
        "😀",
        "\u00a0",
        "a",
        " the",
        "Z",
        "0",
        "7",
        "ß",
        "½",
        "Å",
    ]
    parts += ["<sep>", "<0x0A>", "ﬁ", "e\u0301"]
    return ["", " ", "   ", *TEXTS[:20], *("".join(rng.choices(parts, k=rng.randint(1, 15))) for _ in range(400))]


def folder(place: Path, model: bytes, **config: Any) -> Path:
    place.mkdir(parents=True)
    (place / "tokenizer.model").write_bytes(model)
    if config:
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


KINDS: dict[str, dict[str, Any]] = {
    "Llama 2": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "Gemma, without a space before texts": {
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False,
        "user_defined_symbols": ["<sep>", "\n", "▁▁▁"], "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3,
    },
    "OpenLLaMA, which drops spaces": {"normalization_rule_name": "identity"},
    "T5, normalized": {},
    "normalized, with all spaces": {"remove_extra_whitespaces": False, "user_defined_symbols": ["<sep>"]},
    "Mistral 3, with control pieces": {
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "control_symbols": ["[INST]"],
    },
}  # fmt: skip


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_sentencepiece_or_the_model_is_refused(
    kind: str, model_type: str, byte_fallback: bool, legacy: bool, tmp_path: Path
) -> None:
    model = train(model_type=model_type, byte_fallback=byte_fallback, **KINDS[kind])
    place = folder(tmp_path / "a", model, legacy=legacy)
    theirs = SentencePieceProcessor(model_proto=model)
    if model_type == "unigram" and "Gemma" in kind:  # runs of spaces, of which several cuts are equally good
        with pytest.raises(UserError, match=r"cannot be read exactly \(its rules are beyond a fast tokenizer\)"):
            load_tokenizer(place)
        return
    loaded = load_tokenizer(place)
    save_tokenizer(loaded, tmp_path / "b")
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    begin = [] if theirs.bos_id() < 0 else [theirs.bos_id()]
    for text in probes():
        expected = theirs.encode(text)
        assert loaded(text, split_special_tokens=True)["input_ids"] == [*begin, *expected], text
        assert again(text, split_special_tokens=True)["input_ids"] == [*begin, *expected], text
    assert loaded.eos_token_id == theirs.eos_id()
    assert loaded.convert_ids_to_tokens(list(range(len(theirs)))) == [theirs.id_to_piece(n) for n in range(len(theirs))]


@pytest.mark.parametrize("name", ["tiny_tokenizers/torchtune_sp_m.model", "llama2_tokenizer/tokenizer.model"])
def test_published_models_on_a_corpus(name: str, shared_data: Path) -> None:
    theirs = SentencePieceProcessor(model_file=str(shared_data / name))
    loaded = load_tokenizer(shared_data / name)
    for text in [*(shared_data / "wikitext-2" / "valid.txt").read_text().split("\n")[:300], *probes()]:
        assert loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == theirs.encode(text)


def test_what_cannot_be_read_exactly_is_refused(tmp_path: Path) -> None:
    suffix = train(model_type="unigram", treat_whitespace_as_suffix=True)
    words = train(model_type="word")
    for number, (model, reason) in enumerate([(suffix, "spaces close words in it"), (words, "made of words")]):
        place = folder(tmp_path / str(number), model)
        with pytest.raises(UserError, match=rf"cannot be read exactly \(.*{reason}.*\): give the folder's tokenizer"):
            load_tokenizer(place)
    place = folder(tmp_path / "cut", train(model_type="bpe")[:-100])
    with pytest.raises(UserError, match="is no model of SentencePiece or tiktoken"):
        load_tokenizer(place)


@pytest.mark.parametrize("legacy", [True, False, None])
def test_a_folder_keeps_its_added_tokens_end_and_template(legacy: bool | None, tmp_path: Path) -> None:
    """As tuned networks have it: OpenHermes, Vicuna, WizardLM."""
    model = train(model_type="bpe", byte_fallback=True, **KINDS["Llama 2"])
    theirs = SentencePieceProcessor(model_proto=model)
    size = len(theirs)
    place = folder(
        tmp_path / "a", model, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="<|im_end|>",
        unk_token="<unk>", chat_template="{{ messages }}", **({} if legacy is None else {"legacy": legacy}),
    )  # fmt: skip
    (place / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size, "<|im_start|>": size + 1}))
    (place / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>", "pad_token": "</s>"}')
    loaded, auto = load_tokenizer(place), AutoTokenizer.from_pretrained(place)
    assert (len(loaded), loaded.eos_token, loaded.pad_token) == (size + 2, "<|im_end|>", "</s>")
    assert loaded.chat_template == "{{ messages }}"
    save_tokenizer(loaded, tmp_path / "b")
    for text in ("<|im_start|>the", "<|im_start|>user\nthe cat<|im_end|>\n", "the<|im_end|>cat", "<s>the</s>"):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert ids == auto(text, add_special_tokens=False)["input_ids"]
        assert ids == AutoTokenizer.from_pretrained(tmp_path / "b")(text, add_special_tokens=False)["input_ids"]
    if legacy:  # each part as a text of its own
        ids = loaded("the<|im_end|> cat", add_special_tokens=False)["input_ids"]
        assert ids == [*theirs.encode("the"), size, *theirs.encode(" cat")]
    for text in probes():  # whose spaces transformers loses
        assert loaded(text)["input_ids"] == [theirs.bos_id(), *theirs.encode(text)]


def test_added_tokens_by_id_and_options(tmp_path: Path) -> None:
    model = train(model_type="bpe", byte_fallback=True, **KINDS["Llama 2"])
    size = len(SentencePieceProcessor(model_proto=model))
    added = {
        str(size): {"content": "[PAD]", "special": True},
        "1": {"content": "<s>", "special": True},
    }
    place = folder(
        tmp_path / "a", model, added_tokens_decoder=added, pad_token="[PAD]", add_bos_token=False, add_eos_token=True
    )
    loaded = load_tokenizer(place)
    assert loaded.pad_token_id == size
    assert loaded("the")["input_ids"] == [*loaded("the", add_special_tokens=False)["input_ids"], 2]
