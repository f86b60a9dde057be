"""Chat templates: where they come from, and bounds on what they do."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from anyorder.checkpoints.chat_template.render import ChatTemplateError, given_template, render
from anyorder.errors import UserError
from tests.data import tokenizers

MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": None}]
TOKENIZER = tokenizers.chatty()


@pytest.mark.parametrize("asks", [True, False])
def test_a_rendering_is_transformers(asks: bool) -> None:
    expected = TOKENIZER.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=asks)
    assert render(TOKENIZER, tokenizers.CHATML, MESSAGES, add_generation_prompt=asks) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a'|center(10**9) }}", "it takes more than 512 MiB of memory"),
        ("{{ 'a' * 10**10 }}", "it takes more than 512 MiB of memory"),
        ("{{ '{:>9999999999}'.format(1) }}", "it takes more than 512 MiB of memory"),
        ("{{ range(10**9)|list }}", "Range too big"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself without an end"),
        ("{{ messages[7].x }}", "has no element 7"),
        ("{{ x.y }}", "'x' is undefined"),
        ("{% for", "end of template"),
        ("{{ '' }}", "it writes nothing"),
        ("{{ 'a' * 40000000 }}", "it writes 40000000 characters"),
        ("{{ '\\ud800' }}", "a surrogate alone"),
    ],
)
def test_templates_that_do_not_write(template: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match="the chat template does not write these messages") as error:
        render(TOKENIZER, template, MESSAGES, add_generation_prompt=False)
    assert reason in error.value.reason


@pytest.mark.slow
def test_a_template_that_takes_hours_and_one_after_it() -> None:
    nothing = "{% if j < 0 %}x{% endif %}"  # what is written, even an empty text, would take memory first
    loops = f"{{% set a = range(100000) %}}{{% for i in a %}}{{% for j in a %}}{nothing}{{% endfor %}}{{% endfor %}}"
    with pytest.raises(ChatTemplateError, match="more than 5 seconds"):
        render(TOKENIZER, loops, MESSAGES, add_generation_prompt=False)
    assert render(TOKENIZER, "x{{ 1 }}", MESSAGES, add_generation_prompt=False) == "x1"


def _rendered(numbers: list[int]) -> list[str]:
    return [
        render(TOKENIZER, "{{ messages[0].content }}", [{"role": "user", "content": str(number)}],
               add_generation_prompt=False)
        for number in numbers
    ]  # fmt: skip


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
def test_processes_that_were_forked_render_as_well() -> None:
    """As the workers of a data loader, or of `Dataset.map`, beside a parent that goes on."""
    assert _rendered([0]) == ["0"]  # the parent's process runs
    blocks = [list(range(start, start + 20)) for start in range(0, 80, 20)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(_rendered, blocks)
        here = _rendered(list(range(100, 140)))
        assert found.get(60) == [[str(number) for number in block] for block in blocks]
    assert here == [str(number) for number in range(100, 140)]
    assert _rendered([7]) == ["7"]


def test_a_template_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("\ufeff{{ messages }}", encoding="utf-8")
    assert given_template(None, file) == given_template(None, "{{ messages }}") == "{{ messages }}"
    (tmp_path / "chat.json").write_text(json.dumps({"chat_template": "{{ 1 }}"}))
    assert given_template(None, tmp_path / "chat.json") == "{{ 1 }}"
    for name, content, problem in (
        ("none.txt", b"chatml", "has no Jinja in it"),
        ("latin.jinja", b"\xff{{", "is not UTF-8"),
        ("other.json", b"[]", "no JSON object with the field `chat_template`"),
        ("absent.jinja", None, "is no file here and no template"),
        ("x" * 5000, None, "template is "),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=problem):
            given_template(None, tmp_path / name)
