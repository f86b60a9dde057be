"""Hugging Face folders: `tokenizer.json` decides the ids, and the files beside it the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama import LlamaTokenizer

import anyorder
from anyorder.checkpoints import load_tokenizer, save_tokenizer
from anyorder.errors import UserError

SPECIAL = ["<s>", "</s>", "<unk>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEXTS = ["for i in range(10):\n    10 20\n    1. item   2. item    30 isn't IT'S 12345678 naïve 日本語"] * 20
PROBES = [
    "\n    1. item\n    2. item", "isn't IT'S", "x = 12345678  # 3", "Hello", " Hello", "  Hello ", "<s>Hello",
    "a</s> b", "日本語 и русский, naïve 😀", "\t\r\n\n", "", " ", "<|im_start|>user",
]  # fmt: skip


def byte_level(*cuts: pre_tokenizers.PreTokenizer) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Sequence(list(cuts)), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    return made


def smollm() -> Tokenizer:
    return byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3() -> Tokenizer:
    made = byte_level(
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    )  # fmt: skip
    made.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    return made


def llama2() -> Tokenizer:
    words = ["▁", "▁▁", "H", "e", "l", "o", "He", "ll", "llo", "Hello", "▁Hello", "b", "▁b"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *words]
    merges = [("▁", "▁"), ("H", "e"), ("l", "l"), ("ll", "o"), ("He", "llo"), ("▁", "Hello"), ("▁", "b")]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    return made


def unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False),
    )
    return made


MAKERS = (smollm, llama3, llama2, word_piece, unigram)
CLASSES = (
    "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer",
    "CohereTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "TheirOwnTokenizer", None,
)  # fmt: skip


def write(place: Path, backend: Tokenizer, **config: Any) -> Path:
    place.mkdir(parents=True)
    backend.save(str(place / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (place / "tokenizer_config.json").write_text(json.dumps(named | config))
    return place


@pytest.mark.parametrize("its_class", CLASSES)
@pytest.mark.parametrize("make", MAKERS)
def test_the_file_decides_the_ids_whatever_class_is_named(
    make: Callable[[], Tokenizer], its_class: str | None, tmp_path: Path
) -> None:
    auto_map = {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]} if its_class == "TheirOwnTokenizer" else None
    place = write(tmp_path / "a", make(), tokenizer_class=its_class, auto_map=auto_map)
    truth, loaded = Tokenizer.from_file(str(place / "tokenizer.json")), load_tokenizer(place)
    save_tokenizer(loaded, tmp_path / "b")
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    for text in PROBES:
        expected = truth.encode(text)
        for one in (loaded, again, load_tokenizer(tmp_path / "b")):
            assert one(text)["input_ids"] == expected.ids, text
        assert loaded.decode(expected.ids) == truth.decode(expected.ids, skip_special_tokens=False)


def test_what_convert_writes_is_read_alike_by_transformers(tmp_path: Path) -> None:
    made = smollm()
    config = LlamaConfig(
        vocab_size=made.get_vocab_size(), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "a")
    made.save(str(tmp_path / "a" / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "padding_side": "left", "model_max_length": 77,
        "chat_template": [{"name": "default", "template": "{{ 1 }}"}, {"name": "tools", "template": "{{ 2 }}"}],
    }  # fmt: skip
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    anyorder.convert(tmp_path / "a", tmp_path / "b")
    before = json.loads((tmp_path / "a" / "tokenizer.json").read_text())
    after = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    for part in ("model", "normalizer", "pre_tokenizer", "decoder", "added_tokens"):
        assert after[part] == before[part]
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    for text in PROBES:
        assert again(text)["input_ids"] == made.encode(text).ids
    assert (again.padding_side, again.model_max_length, again.eos_token) == ("left", 77, "</s>")
    assert again.chat_template == {"default": "{{ 1 }}", "tools": "{{ 2 }}"}


def test_a_tokenizer_that_transformers_loaded_is_saved_with_its_ids(tmp_path: Path) -> None:
    """`LlamaTokenizer` builds another backend than the file's, which is then the one to keep."""
    theirs = LlamaTokenizer.from_pretrained(write(tmp_path / "a", llama2(), tokenizer_class="LlamaTokenizer"))
    save_tokenizer(theirs, tmp_path / "b")
    for text in PROBES:
        assert load_tokenizer(tmp_path / "b")(text)["input_ids"] == theirs(text)["input_ids"]
        assert AutoTokenizer.from_pretrained(tmp_path / "b")(text)["input_ids"] == theirs(text)["input_ids"]


def test_real_byte_pairs_of_a_corpus(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "tiny_tokenizers" / "torchtune_tiny_bpe_tokenizer.json"
    truth = Tokenizer.from_file(str(file))
    (tmp_path / "tokenizer.json").write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    loaded = load_tokenizer(tmp_path)
    corpus = [*(shared_data / "wikitext-2" / "valid.txt").read_text().split("\n")[:300], *PROBES]
    assert loaded(corpus)["input_ids"] == [truth.encode(text).ids for text in corpus]


# ---- what stands beside the vocabulary ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("its_class", "options", "added"),
    [
        ("LlamaTokenizerFast", {"add_bos_token": True}, ([0], [])),
        ("LlamaTokenizer", {"add_bos_token": True, "add_eos_token": True}, ([0], [1])),
        ("LlamaTokenizer", {}, ([], [])),
        ("PreTrainedTokenizerFast", {"add_bos_token": True}, ([], [])),
        ("Qwen2Tokenizer", {"add_bos_token": True}, ([], [])),
    ],
)
def test_options_add_begin_and_end_where_transformers_4_let_them(
    its_class: str, options: dict[str, bool], added: tuple[list[int], list[int]], tmp_path: Path
) -> None:
    """Files without a post-processor under `LlamaTokenizerFast`, as DeepSeek's, were trained with a begin token."""
    loaded = load_tokenizer(write(tmp_path / "a", smollm(), tokenizer_class=its_class, **options))
    plain = loaded("hi", add_special_tokens=False)["input_ids"]
    save_tokenizer(loaded, tmp_path / "b")
    for one in (loaded, AutoTokenizer.from_pretrained(tmp_path / "b")):
        assert one("hi")["input_ids"] == [*added[0], *plain, *added[1]]


def test_llama_without_a_begin_token_by_its_option(tmp_path: Path) -> None:
    loaded = load_tokenizer(write(tmp_path / "a", llama3(), tokenizer_class="LlamaTokenizer", add_bos_token=False))
    assert loaded("hi")["input_ids"] == loaded("hi", add_special_tokens=False)["input_ids"]


def test_added_tokens_and_special_tokens_of_older_files(tmp_path: Path) -> None:
    backend = smollm()
    size = backend.get_vocab_size()
    place = write(tmp_path / "a", backend, eos_token="</s>", tokenizer_class="LlamaTokenizer")
    (place / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1, "<|im_start|>": size, "<s>": 0}))
    special = {"eos_token": {"content": "<|im_end|>", "lstrip": False, "normalized": False}, "pad_token": "</s>"}
    (place / "special_tokens_map.json").write_text(json.dumps(special))
    loaded = load_tokenizer(place)
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|im_end|>", "</s>", "<s>")
    assert loaded("<|im_start|><|im_end|>")["input_ids"] == [size, size + 1]
    assert loaded.decode([size + 1], skip_special_tokens=True) == ""


def test_flags_of_added_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    backend = smollm()
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    backend.add_tokens([AddedToken("<think>", special=False)])
    place = write(tmp_path / "a", backend, mask_token="<mask>", additional_special_tokens=["<think>"])
    loaded = load_tokenizer(place)
    for text in ("a  <mask> b", "a <think> b"):
        assert loaded(text)["input_ids"] == backend.encode(text).ids
    assert loaded.mask_token_id == backend.token_to_id("<mask>")


def test_templates_in_files_come_first(tmp_path: Path) -> None:
    place = write(tmp_path / "a", smollm(), chat_template="old")
    (place / "chat_template.jinja").write_text("new")
    assert load_tokenizer(place).chat_template == "new"
    (place / "additional_chat_templates").mkdir()
    (place / "additional_chat_templates" / "rag.jinja").write_text("more")
    assert load_tokenizer(place).chat_template == {"default": "new", "rag": "more"}


def test_special_tokens_of_the_class_where_none_are_named(tmp_path: Path) -> None:
    place = write(tmp_path / "a", llama2(), tokenizer_class="LlamaTokenizer")
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    loaded = load_tokenizer(place)
    assert (loaded.bos_token, loaded.eos_token, loaded.unk_token) == ("<s>", "</s>", "<unk>")
    named = {"tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": None}
    (place / "tokenizer_config.json").write_text(json.dumps(named))
    assert (load_tokenizer(place).bos_token, load_tokenizer(place).eos_token) == (None, None)


def test_a_file_that_cuts_and_pads_does_neither_unasked(tmp_path: Path) -> None:
    backend = smollm()
    backend.enable_truncation(3)
    backend.enable_padding(length=9, pad_token="</s>", pad_id=1, direction="left")
    loaded = load_tokenizer(write(tmp_path / "a", backend))
    assert len(loaded("12345678")["input_ids"]) == 8
    assert (loaded.pad_token, loaded.padding_side) == ("</s>", "left")


# ---- damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"eos_token": ["</s>"]}', r"field 'eos_token' of '.*' is \['</s>'\]: give the text"),
        ("tokenizer_config.json", '{"eos_token": {"content": 3}}', r"field 'eos_token' of .*: give the text of a"),
        ("tokenizer_config.json", '{"tokenizer_class": ["A"]}', r"'tokenizer_class' of .* is \['A'\]: give str"),
        ("tokenizer_config.json", '{"padding_side": "up"}', r"""'padding_side' of .* is 'up': give "left" or"""),
        ("tokenizer_config.json", '{"chat_template": [{"name": 1}]}', r"'chat_template' of .*: give a template, or a"),
        ("tokenizer_config.json", '{"chat_template": 7}', r"'chat_template' of .* is 7: give a template"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"3": "\\ud800"}}', r"_decoder. of .*: give tokens of"),
        ("tokenizer_config.json", '{"eos_token": "\\ud800"}', r"'eos_token' of .*: give tokens of whole characters"),
        ("added_tokens.json", '{"\\ud800": 3}', r"of .*added_tokens.json' is 3: give tokens of whole characters"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', r"'added_tokens_decoder' of .*: give an o"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"3": {}}}', r"'added_tokens_decoder' of .*: give the te"),
        ("tokenizer_config.json", '{"additional_special_tokens": 3}', r"'additional_special_tokens' of .* is 3: give"),
        ("tokenizer_config.json", '{"model_max_length": "many"}', r"'model_max_length' of .* is 'many': give int"),
        ("tokenizer_config.json", '{"add_bos_token": 1}', r"'add_bos_token' of .* is 1: give bool"),
        ("tokenizer_config.json", "[1]", r"tokenizer_config.json' holds list, not a JSON object"),
        ("tokenizer_config.json", "[" * 50_000, r"tokenizer_config.json' nests thousands of"),
        ("tokenizer_config.json", '{"a": ' + "9" * 5000 + "}", r"tokenizer_config.json' is not JSON"),
        ("added_tokens.json", '{"<x>": "3"}', r"field '<x>' of '.*added_tokens.json' is '3': give the id of a token"),
        ("added_tokens.json", '{"<x>": 9999}', r"the added token '<x>' of .* has id 9999, but the vocabulary leaves"),
        ("special_tokens_map.json", '{"eos_token": [1]}', r"'eos_token' of '.*special_tokens_map.json' is \[1\]"),
        ("tokenizer.json", '{"model": ' + "[" * 50_000, r"tokenizer in .* cannot be read \(.*\): fetch it again\.$"),
        ("tokenizer.json", "", r"the tokenizer in .* cannot be read"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": [], "merges": []}}', r"cannot be read"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_sentence(file: str, content: str, message: str, tmp_path: Path) -> None:
    place = write(tmp_path / "a", smollm())
    (place / file).write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        load_tokenizer(place)
    assert "\n" not in str(refusal.value)


def test_any_tokenizer_is_of_one_class(tmp_path: Path) -> None:
    assert type(load_tokenizer(write(tmp_path / "a", smollm()))) is PreTrainedTokenizerFast


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("other", [None, "spiece.model", "merges.txt"])
def test_settings_without_a_vocabulary_are_no_tokenizer(name: str, other: str | None, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "eos_token": "</s>"}))
    if other is not None:
        (tmp_path / other).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 5\n")
    with pytest.raises(UserError) as error:
        load_tokenizer(tmp_path)
    assert "and no vocabulary: fetch its tokenizer.json" in str(error.value) or "cannot be read" in str(error.value)
