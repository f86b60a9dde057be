"""Begin and end tokens stand once: in prompts, in what stands around gaps, in phrasings, and in learnt texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.api.phrasings import read_questions
from anyorder.api.prompts import prompt_ids, prompts_with_gaps
from anyorder.checkpoints.tokenizer.encoding import (
    begin_tokens,
    continuing_tokens,
    document_tokens,
    plain_tokens,
    prompt_tokens,
)
from anyorder.data import DataConfig, chat_template, prepare
from anyorder.decoding.canvas import BLANK
from tests.writers import byte_tokenizer, chain, sentencepiece_tokenizer

BOS, END = 1, 2


def adding(begin: Sequence[str] = (), end: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """Adds these around each text, as `add_bos_token`, `add_eos_token`, BERT's template or GLM's two tokens do."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>", "[SEP]"]})
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (*begin, *end)}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*begin, "$A", *end], pair=[*begin, "$A", *end, "$B:1"], special_tokens=list(ids.items())
    )
    return tokenizer


AROUND = {
    "nothing": adding(),
    "begin": adding(["<s>"]),
    "begin and end": adding(["<s>"], ["</s>"]),
    "two, as GLM": adding(["[gMASK]", "<sop>"]),
    "as BERT": adding(["<s>"], ["[SEP]"]),
    "end": adding((), ["</s>"]),
    "sentencepiece": sentencepiece_tokenizer(),
}
BEGINS = {name: lambda _: [BOS] for name in AROUND} | {
    "nothing": lambda _: [],
    "end": lambda _: [],
    "two, as GLM": lambda tokenizer: tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"]),
}
LETTERS = st.text("Once upatimLy\n é日", min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(text=LETTERS)
@pytest.mark.parametrize("name", AROUND)
def test_a_prompt_begins_once_and_is_left_open(name: str, text: str) -> None:
    tokenizer = AROUND[name]
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = BEGINS[name](tokenizer)
    assert begin_tokens(tokenizer) == begin
    assert prompt_tokens(tokenizer, text) == [*begin, *plain]
    assert plain_tokens(tokenizer, text) == plain
    written_out = "".join(map(str, tokenizer.convert_ids_to_tokens(begin)))
    if begin and name != "sentencepiece":
        assert prompt_tokens(tokenizer, written_out + text) == [*begin, *plain]
        last = str(tokenizer.convert_ids_to_tokens(begin[-1]))
        assert prompt_tokens(tokenizer, last + text) == [*begin, *plain]  # its last part alone


@settings(deadline=None, max_examples=50)
@given(text=LETTERS, begun=st.booleans(), ends=st.integers(0, 2), line=st.sampled_from(["", "\n", " \n"]))
@pytest.mark.parametrize("name", AROUND)
def test_a_learnt_text_begins_once_and_ends_in_one_end_token(
    name: str, text: str, begun: bool, ends: int, line: str
) -> None:
    tokenizer = AROUND[name]
    begin = begin_tokens(tokenizer)
    written = "".join(map(str, tokenizer.convert_ids_to_tokens(begin))) if begun else ""
    (ids,) = document_tokens(tokenizer, [written + text + "</s>" * ends + (line if ends else "")], END)
    assert ids[: len(begin)] == begin
    assert [ids.count(token_id) for token_id in begin] == [1] * len(begin)
    assert ids[-1] == END
    assert ids.count(END) == 1
    assert tokenizer.convert_tokens_to_ids("[SEP]") not in ids
    if name != "sentencepiece":
        assert ids[len(begin) : -1] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_end_tokens_within_a_text_stay() -> None:
    tokenizer = AROUND["begin"]
    assert document_tokens(tokenizer, ["a</s>a"], END) == [[BOS, *plain_tokens(tokenizer, "a</s>a"), END]]
    assert document_tokens(tokenizer, [], END) == []
    assert document_tokens(tokenizer, ["a</s>", ""], None) == [[BOS, *plain_tokens(tokenizer, "a"), END], [BOS]]


@pytest.mark.parametrize("name", AROUND)
def test_every_way_to_give_a_text_has_the_same_tokens(name: str) -> None:
    """Batches, gaps and phrasings; with the begin written out and not."""
    tokenizer = AROUND[name]
    begin = "".join(map(str, tokenizer.convert_ids_to_tokens(begin_tokens(tokenizer))))
    expected = prompt_tokens(tokenizer, "Once upon a time")
    texts = ["Once upon a time"] + ([begin + "Once upon a time"] if name != "sentencepiece" else [])
    assert prompt_ids(texts, tokenizer, None) == ([expected] * len(texts), False)
    for text in texts:
        ((canvas,), _) = prompts_with_gaps(text.replace("a", "[...] a"), tokenizer, None, new_tokens=2)
        assert [token_id for token_id in canvas if token_id != BLANK][: len(expected) - 2] == expected[:-2]
        assert canvas[-1] == expected[-1]
        for prefix, phrasing, suffix in (("", text, ""), (text, " was", ""), (text[:-5], " ti", "me")):
            ((question,), _) = read_questions([phrasing], tokenizer, prefix=prefix, suffix=suffix)
            ids = [*question.prefix, *question.segments[0], *question.suffix]
            assert [token_id for token_id in ids if token_id in tokenizer.all_special_ids] == begin_tokens(tokenizer)


@pytest.mark.parametrize("name", AROUND)
def test_what_goes_on_has_nothing_that_begins_or_ends(name: str) -> None:
    tokenizer = AROUND[name]
    assert not set(continuing_tokens(tokenizer, " upon a time")) & set(tokenizer.all_special_ids)


def test_a_prompt_that_a_template_wrote_has_the_tokens_that_were_learnt(tmp_path: Path) -> None:
    tokenizer = adding(["<s>"], ["</s>"])
    dialogue = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon"}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": dialogue}) + "\n")
    row = prepare(tmp_path / "c.jsonl", tokenizer, DataConfig(length=64, kind="sft"), cache_dir=tmp_path / "cache")[0]
    learnt = list(row["input_ids"][: row["prompt_length"]])
    tokenizer.chat_template = chat_template(tokenizer)
    model = chain(tokenizer, [])
    text = tokenizer.apply_chat_template(dialogue[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(dialogue[:1], add_generation_prompt=True)
    for prompt in (text, ids, dialogue[:1]):
        assert anyorder.generate(model, tokenizer, prompt, max_new_tokens=1).sequences[0][:-1] == learnt
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "<s>Once upon</s>"}) + "\n")
    row = prepare(tmp_path / "t.jsonl", tokenizer, DataConfig(length=64, packed=False), cache_dir=tmp_path / "cache")[0]
    assert list(row["input_ids"]) == [BOS, *plain_tokens(tokenizer, "Once upon"), END]


def test_a_tokenizer_is_called_on_text_in_one_place() -> None:
    call = re.compile(r"tokenizer\([^)]*\)\s*\[\"input_ids\"\]")
    package = Path(anyorder.__file__).parent
    calling = [str(file.relative_to(package)) for file in package.rglob("*.py") if call.search(file.read_text())]
    assert calling == ["checkpoints/tokenizer/encoding.py"]
