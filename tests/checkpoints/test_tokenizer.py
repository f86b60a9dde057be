from __future__ import annotations

import base64
import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from anyorder.checkpoints import llama2c, load_tokenizer, save_model, save_tokenizer
from anyorder.checkpoints.tokenizer import BYTES, LLAMA3_SPECIAL, SPECIAL, is_tiktoken, pieces_tokenizer, read_ranks
from anyorder.checkpoints.tokenizer import tiktoken as module
from anyorder.data import train_tokenizer
from anyorder.errors import UserError
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.modes import diffusion

TEXTS = [
    "",
    " ",
    "   ",
    "Once upon a time",
    " leading space",
    "   three leading, two trailing  ",
    "two  spaces, three   spaces" + " " * 37 + "and many",
    "\n",
    "lines\n\n  with\tblanks\r\n",
    "café, naïve, Ångström, e\u0301, ﬁ",
    "日本語 と 한국어 и русский",
    "😀 👩\u200d👩\u200d👧 \U0010ffff",
    "\u00a0\u200b\u3000",
    "▁ is a space in pieces",
    "<0x0A> is not a byte",
    "12345 3.14 1,000",
    "\x00\x01\x7f",
]


@pytest.fixture(scope="module")
def sentencepiece(shared_data: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(shared_data / "llama2_tokenizer" / "tokenizer.model"))


@pytest.fixture(scope="module")
def llama2(shared_data: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(shared_data / "llama2_tokenizer" / "tokenizer.bin")


@pytest.fixture(scope="module")
def tok512(shared_data: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(shared_data / "stories260K" / "tok512.bin")


def small_vocabulary() -> tuple[list[str], list[float]]:
    pieces = [*SPECIAL, *BYTES, "▁a", "▁ab", "▁", "a", "b"]
    return pieces, [0.0] * 259 + [-float(index) for index in range(5)]


def random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    parts = [" ", "  ", " " * 20, "\n", "\t", "é", "本", "😀", "\u00a0", "a", "the", "Z", "0", "▁", "<", "s>", "ß"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 15))) for _ in range(count)]


@pytest.mark.parametrize("name", ["tokenizer.bin", "tokenizer.model"])
def test_ids_and_texts_are_those_of_sentencepiece(
    shared_data: Path, sentencepiece: SentencePieceProcessor, name: str
) -> None:
    tokenizer = load_tokenizer(shared_data / "llama2_tokenizer" / name)
    corpus = (shared_data / "wikitext-2" / "valid.txt").read_text().split("\n")[:300]
    for text in [*TEXTS, *random_texts(500), *corpus]:
        # SentencePiece knows no special tokens within texts.
        token_ids = tokenizer.encode(text, split_special_tokens=True)
        assert token_ids == [1, *sentencepiece.encode(text)], text
        assert tokenizer.decode(token_ids, skip_special_tokens=True) == sentencepiece.decode(token_ids), text


def run_c_encode(text: str, pieces: list[str], scores: list[float]) -> list[int]:
    """llama2.c's `encode`: characters or their bytes, then the best of all neighbours, again and again."""
    index = {piece: token_id for token_id, piece in reversed(list(enumerate(pieces)))}
    token_ids = []
    for character in "▁" + text.replace(" ", "▁") if text else "":
        known = index.get(character)
        token_ids += [byte + 3 for byte in character.encode()] if known is None else [known]
    while True:
        pairs = [pieces[left] + pieces[right] for left, right in pairwise(token_ids)]
        known_pairs = [(scores[index[pair]], -at) for at, pair in enumerate(pairs) if pair in index]
        if not known_pairs:
            return token_ids
        at = -max(known_pairs)[1]
        token_ids[at : at + 2] = [index[pairs[at]]]


def test_ids_are_those_of_llama2_c(shared_data: Path, tok512: PreTrainedTokenizerBase) -> None:
    pieces, scores = llama2c.read_pieces(shared_data / "stories260K" / "tok512.bin")
    story = (shared_data / "tinystories" / "tinystories_lowercased_4M.txt").read_text()[:2000]
    for text in [*TEXTS, *random_texts(200), story]:
        token_ids = tok512.encode(text, split_special_tokens=True)
        assert token_ids == [1, *run_c_encode(text, pieces, scores)], text
        assert tok512.decode(token_ids, skip_special_tokens=True) == text.replace("▁", " "), text


def test_special_tokens(llama2: PreTrainedTokenizerBase) -> None:
    assert (llama2.unk_token_id, llama2.bos_token_id, llama2.eos_token_id) == (0, 1, 2)
    assert llama2.convert_ids_to_tokens([0, 1, 2, 3, 258]) == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert llama2.encode("a b", add_special_tokens=False) == [263, 289]
    assert llama2.encode("a</s>")[-1] == 2


def test_a_saved_folder_loads_here_and_in_transformers(llama2: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    save_tokenizer(llama2, tmp_path / "folder")
    for again in (load_tokenizer(tmp_path / "folder"), AutoTokenizer.from_pretrained(tmp_path / "folder")):
        for text in TEXTS:
            assert again.encode(text) == llama2.encode(text), text


@pytest.mark.parametrize("name", ["stories260K/tok512.bin", "llama2_tokenizer/tokenizer.bin"])
def test_llama2_c_files_are_written(shared_data: Path, tmp_path: Path, name: str) -> None:
    tokenizer = load_tokenizer(shared_data / name)
    save_tokenizer(tokenizer, tmp_path / "t.bin")
    again = load_tokenizer(tmp_path / "t.bin")
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    if "tok512" in name:  # Llama 2's scores are numbered with gaps, so its file is another that means the same
        assert (tmp_path / "t.bin").read_bytes() == (shared_data / name).read_bytes()


def test_a_tokenizer_that_llama2_c_cannot_hold(shared_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    bytes_source = shared_data / "tiny_tokenizers" / "torchtune_tiny_bpe_tokenizer.json"
    (other / "tokenizer.json").write_bytes(bytes_source.read_bytes())
    (other / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(UserError, match=r"the tokenizer is not of Llama 2's kind .*: .* save it into a folder"):
        save_tokenizer(load_tokenizer(other), tmp_path / "t.bin")
    assert not (tmp_path / "t.bin").exists()


def test_a_tokenizer_joins_a_checkpoint_once(tmp_path: Path) -> None:
    tokenizer = pieces_tokenizer(*small_vocabulary())
    (tmp_path / "config.json").write_text("{}")
    save_tokenizer(tokenizer, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    with pytest.raises(UserError, match=r"has a tokenizer.json already: give another folder, or delete it first"):
        save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"output '.*config.json' is a file: give a folder, or a name that ends in"):
        save_tokenizer(tokenizer, tmp_path / "config.json")


def test_vocabularies_of_another_kind() -> None:
    pieces, scores = small_vocabulary()
    with pytest.raises(UserError, match=r"the vocabulary begins with \['<pad>', .*: give one of Llama 2's kind"):
        pieces_tokenizer(["<pad>", *pieces], [0.0, *scores])
    with pytest.raises(UserError, match=r"piece '▁a' is in the vocabulary twice: export the tokenizer again"):
        pieces_tokenizer([*pieces, "▁a"], [*scores, -9.0])


def test_tokenizers_that_cannot_be_read(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer '.*nowhere' is no file or folder here: check the path"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"folder '.*' has no tokenizer.json: name the file or folder"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"stories260K.bin' is no whole llama2.c tokenizer file: give one"):
        load_tokenizer(shared_data / "stories260K" / "stories260K.bin")
    (tmp_path / "tokenizer.model").write_bytes(b"Once upon a time")
    with pytest.raises(UserError, match=r"tokenizer.model' is no model of SentencePiece or tiktoken: give a"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match=r"the tokenizer in '.*' cannot be read \(.+\): fetch it again"):
        load_tokenizer(tmp_path)


# ------------------------------------------------------------------------------------------------ tiktoken

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

RANKS = {"small": "tiny_tokenizers/torchtune_tiktoken_small.model", "Llama 3": "llama3_tokenizer/tokenizer.model"}


@pytest.fixture(scope="module", params=RANKS)
def ranks(request: pytest.FixtureRequest, shared_data: Path) -> Path:
    return shared_data / RANKS[request.param]


@pytest.fixture(scope="module")
def llama3(ranks: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(ranks)


@pytest.fixture(scope="module")
def theirs(ranks: Path) -> tiktoken.Encoding:
    lines = [line.split() for line in ranks.read_text().splitlines()]
    return tiktoken.Encoding(
        name="llama3",
        pat_str=LLAMA3_PATTERN,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in lines},
        special_tokens={name: len(lines) + number for number, name in enumerate(LLAMA3_SPECIAL)},
    )


def test_ids_and_texts_are_those_of_tiktoken(
    shared_data: Path, llama3: PreTrainedTokenizerBase, theirs: tiktoken.Encoding
) -> None:
    rng = random.Random(1)
    parts = [
        "I'LL",
        "don't",
        "'ſ",
        "'S ",
        "1234567",
        "٣٤",
        "ⅷ",
        "e\u0301",
        "\r\n",
        " \t",
        "\u2028",
        "\ufeff",
        "{}();",
        "...",
    ]
    mixed = ["".join(rng.choices([*parts, *TEXTS], k=rng.randint(1, 12))) for _ in range(500)]
    corpus = (shared_data / "wikitext-2" / "valid.txt").read_text().split("\n")[:300]
    for text in [*TEXTS, *random_texts(500), *mixed, *corpus, "\n".join(corpus)]:
        token_ids = llama3.encode(text, split_special_tokens=True)
        assert token_ids == [llama3.bos_token_id, *theirs.encode(text, disallowed_special=())], text
        assert llama3.decode(token_ids, skip_special_tokens=True) == text


def test_special_tokens_of_tiktoken(llama3: PreTrainedTokenizerBase, theirs: tiktoken.Encoding) -> None:
    assert len(llama3) == theirs.n_vocab == len(theirs._mergeable_ranks) + 256
    assert len(set(LLAMA3_SPECIAL)) == 256
    assert (llama3.bos_token, llama3.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    text = "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|reserved_special_token_247|>"
    assert llama3.encode(text)[1:] == theirs.encode(text, allowed_special="all")
    assert llama3.encode(text, split_special_tokens=True)[1:] == theirs.encode(text, disallowed_special=())
    assert llama3.decode(llama3.encode(text), skip_special_tokens=True) == "user\n\nHi"


def test_a_folder_with_ranks_alone(
    shared_data: Path, tmp_path: Path
) -> None:  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes((shared_data / RANKS["small"]).read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    save_tokenizer(tokenizer, tmp_path / "saved")
    for again in (load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        for text in TEXTS:
            assert again.encode(text) == tokenizer.encode(text), text
        assert (again.bos_token_id, again.eos_token_id) == (2000, 2001)
    with pytest.raises(UserError, match=r"the tokenizer is not of Llama 2's kind .*: .* save it into a folder"):
        save_tokenizer(tokenizer, tmp_path / "t.bin")


def test_the_kind_of_file_shows_in_its_content(shared_data: Path) -> None:
    assert all(is_tiktoken(shared_data / name) for name in RANKS.values())
    assert not is_tiktoken(shared_data / "llama2_tokenizer" / "tokenizer.model")
    assert not is_tiktoken(shared_data / "stories260K" / "tok512.bin")


def test_ranks_that_are_damaged(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / RANKS["small"]).read_text().splitlines(keepends=True)
    file = tmp_path / "tokenizer.model"
    for changed, message in [
        ([*lines[:9], "IQ==\n", *lines[10:]], r"line 10 of '.*tokenizer.model' is not a token in base64 and its rank"),
        ([*lines[:9], "I?== 9\n", *lines[10:]], r"line 10 of '.*tokenizer.model' is not a token in base64"),
        ([*lines[:9], *lines[10:]], r"the ranks in '.*tokenizer.model' have gaps, or lack some single bytes: fetch"),
        ([*lines[:99], lines[99][:-2]], r"have gaps, or lack some single bytes"),
        (lines[:200], r"have gaps, or lack some single bytes"),
    ]:
        file.write_text("".join(changed))
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)


def test_llama_4_is_told_by_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path) -> None:
    """Ids are tiktoken's, with Llama 4's pattern and special tokens; as many ranks as Llama 4 has would take long."""
    assert module.LLAMA4_RANKS == 200_000
    assert len(set(module.LLAMA4_SPECIAL)) == len(module.LLAMA4_SPECIAL) == 2048
    known = {"<|begin_of_text|>": 0, "<|eom|>": 7, "<|eot|>": 8, "<|image_start|>": 80, "<|image_end|>": 81}
    known |= {"<|tile_x_separator|>": 84, "<|tile_y_separator|>": 85, "<|image|>": 90, "<|patch|>": 92}
    known |= {"<|finetune_right_pad|>": 18, "<|reasoning_thinking_end|>": 1143, "<|reserved_special_token_903|>": 2047}
    assert {name: module.LLAMA4_SPECIAL.index(name) for name in known} == known
    (tmp_path / "tokenizer.model").write_bytes((shared_data / RANKS["small"]).read_bytes())
    ranks = read_ranks(tmp_path / "tokenizer.model")
    monkeypatch.setattr(module, "LLAMA4_RANKS", len(ranks))
    tokenizer = load_tokenizer(tmp_path)
    special = {name: len(ranks) + number for number, name in enumerate(module.LLAMA4_SPECIAL)}
    expected = tiktoken.Encoding("4", pat_str=module.LLAMA4_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    marked = "<|header_start|>user<|header_end|>\n\nHi <|image_start|><|image|><|patch|><|image_end|> HTTPServer's/\n"
    for text in [*TEXTS, marked]:
        token_ids = tokenizer.encode(text)
        assert token_ids == [tokenizer.bos_token_id, *expected.encode(text, allowed_special="all")], text
    assert tokenizer.decode(tokenizer.encode(TEXTS[0]), skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize("its_class", ["TokenizersBackend", "LlamaTokenizer", "Qwen2Tokenizer"])
def test_a_folder_of_ours_is_not_asked_what_network_it_has(
    its_class: str, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers does not know our networks unless their face is imported, and would warn."""
    words = train_tokenizer(["a text"], 260)
    model = Llama(tiny_config.replace(vocab_size=len(words), modes=(diffusion(3),)))
    save_model(model, tmp_path / "ours", tokenizer=words)
    named = tmp_path / "ours" / "tokenizer_config.json"
    named.write_text(json.dumps(json.loads(named.read_text()) | {"tokenizer_class": its_class}))

    def asked(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(PreTrainedConfig, "from_pretrained", asked)
    assert load_tokenizer(tmp_path / "ours").get_vocab() == words.get_vocab()
