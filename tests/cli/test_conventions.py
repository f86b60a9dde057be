"""What holds for all commands: list options, names from elsewhere, users' text in the terminal."""

from __future__ import annotations

import ast
import inspect
import io
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from rich.table import Table

from anyorder import cli
from anyorder.cli import _parser, _signature, command_names, command_of
from anyorder.cli._console import PlainConsole
from anyorder.cli._values import check_values
from anyorder.errors import UserError
from anyorder.utils.other_names import other_name, other_names
from tests.cli.test_main import mistake


def options(name: str) -> list[inspect.Parameter]:
    return list(_signature.parameters_of(command_of(name)).values())


def list_options() -> list[tuple[str, str, Any]]:
    found = []
    for name in command_names():
        hints = _parser.lists_of(command_of(name))
        found += [(name, option.name, hints[option.name]) for option in options(name) if option.name in hints]
    return found


def items(option: str, hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)[:2]]
    if hint is int:
        return ["1", "2"]
    return ["permutation=0.5", "autoregressive=0.5"] if option == "shares" else ["left", "right"]


def words_for(name: str) -> list[str]:
    words = []
    for option in options(name):
        if option.default is option.empty:
            words += ["x"] if option.kind is not option.KEYWORD_ONLY else [f"--{option.name}", "x"]
    return words


def parsed(name: str, words: list[str], option: str) -> list[Any]:
    found: list[Any] = _signature.values_of(_parser.parse(name, command_of(name), words).arguments)[option]
    return found


@pytest.mark.parametrize(("name", "option", "hint"), list_options())
def test_list_options_are_repeated_or_have_commas(name: str, option: str, hint: Any, tmp_path: Path) -> None:
    if option in ("phrasings", "prompts"):  # words
        return
    first, second = items(option, hint)
    rest = [*words_for(name), *(["--objective", "mixture"] if option == "shares" else [])]
    repeated = parsed(name, [*rest, f"--{option}", first, f"--{option}", second], option)
    assert len(repeated) == 2
    joined = parsed(name, [*rest, f"--{option}", f"{first},{second}"], option)
    assert joined == (repeated if hint is not str else [f"{first},{second}"])
    config = tmp_path / "c.yaml"
    for text in (f"{option}: ['{first}', '{second}']", f"{option}:\n- {first}\n- {second}"):
        config.write_text(text)
        assert parsed(name, [*rest, "--config", str(config)], option) == repeated
    if hint is int or get_origin(hint) is Literal:
        with pytest.raises(UserError, match=rf"^--{option} has 'nothing': give "):
            parsed(name, [*rest, f"--{option}", f"{first},nothing"], option)


def test_lists_of_free_text_are_those_and_no_more() -> None:
    free = {(name, option) for name, option, hint in list_options() if hint is str}
    assert free == {
        ("generate", "stop"), ("generate", "image"), ("fuse", "stop"), ("fuse", "phrasings"),
        ("inspect compare", "prompts"),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ other names


def test_every_name_from_elsewhere_leads_to_an_option_that_some_command_has() -> None:
    known = {name: set(_parser.known_to(name, command_of(name))) for name in command_names()}
    for ours, theirs in other_names().items():
        option, _, value = ours.partition(" ")
        having = {name: names for name, names in known.items() if option in names}
        assert having, ours
        for word in theirs:
            leading = [name for name, names in having.items() if word not in names and other_name(word, names)]
            assert leading, (word, ours)
        if value:
            assert any(takes(name, option, value) for name in having), ours


def takes(name: str, option: str, value: str) -> bool:
    try:
        words = [*words_for(name), f"--{option}", value]
        check_values(name, {option: parsed(name, words, option)})
    except UserError:
        return False
    return True


@pytest.mark.parametrize(
    ("command", "theirs", "ours"),
    [
        ("pretrain", "--data_path", "--data"), ("pretrain", "--output_dir", "--output"),
        ("sft", "--model_name_or_path", "--init"), ("sft", "--max_steps", "--steps"),
        ("sft", "--lr", "--learning_rate"),
        ("sft", "--num_train_epochs", "--epochs"), ("sft", "--per_device_train_batch_size", "--batch_size"),
        ("sft", "--gradient_accumulation_steps", "--accumulation"), ("sft", "--train_file", "--data"),
        ("sft", "--dataset", "--data"), ("sft", "--model", "--init"), ("sft", "--max_seq_length", "--length"),
        ("sft", "--max_length", "--length"), ("sft", "--bf16", "--precision bfloat16"),
        ("sft", "--fp16", "--precision float16"), ("sft", "--warmup_steps", "--warmup"),
        ("sft", "--mask_token_id", "--mask_token"), ("sft", "--logging-steps", "--log_every"),
        ("sft", "--wandb_project", "--wandb"), ("generate", "--max_length", "--max_new_tokens"),
        ("generate", "--num_return_sequences", "--num_samples"), ("fuse score", "--lemmaize", "--lemmatize"),
        ("fuse run", "--data_path", "--dataset"), ("fuse run", "--output_dir", "--output"),
    ],
)  # fmt: skip
def test_names_from_elsewhere_get_the_name_to_use(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, theirs: str, ours: str
) -> None:
    name = theirs.replace("-", "_").replace("__", "--", 1)
    expected = f"option {name} is unknown here: the name is {ours}."
    assert mistake(capsys, *command.split(), *words_for(command), theirs, "1") == expected
    assert mistake(capsys, *command.split(), *words_for(command), f"{theirs}=1") == expected
    config = tmp_path / "c.yaml"
    config.write_text(f"{name.removeprefix('--')}: 1\n")
    assert mistake(capsys, *command.split(), *words_for(command), "--config", str(config)) == expected


LLADA_PRETRAINING = """\
model_name_or_path: meta-llama/Llama-2-7b-hf
output_dir: ./llada_pretrained
data_path: ./pretraining_data
gradient_accumulation_steps: 8
max_steps: 100000
warmup_steps: 2000
max_grad_norm: 1.0
max_length: 4096
mask_token_id: 126336
logging_steps: 100
save_steps: 5000
eval_steps: 1000
save_total_limit: 3
fp16: true
dataloader_num_workers: 4
wandb_project: llada
"""


def test_a_configuration_from_elsewhere_is_led_to_ours_setting_by_setting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for line in LLADA_PRETRAINING.splitlines():
        config = tmp_path / "c.yaml"
        config.write_text(line)
        message = mistake(capsys, "pretrain", *words_for("pretrain"), "--config", str(config))
        assert message.startswith(f"option --{line.partition(':')[0]} is unknown here: the name is --")


# ------------------------------------------------------------------------------------------------ users' text


def test_users_text_is_no_markup() -> None:
    console = PlainConsole()
    console.file = io.StringIO()
    table = Table("[/x]")
    table.add_row("[/x] :smile: [red]")
    console.print("wrote [/x] :smile:")
    console.print(table)
    with console.status("reading [/x]") as status:
        status.update("read [/x]")
    assert console.file.getvalue().count("[/x]") == 3
    assert ":smile:" in console.file.getvalue()


def test_no_other_console_prints() -> None:
    """Of rich's own consoles, only ones that others give, or that measure, are left."""
    for file in Path(cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console":
                assert [keyword.arg for keyword in node.keywords] == ["width"], file


@pytest.mark.parametrize("words", [["info", "[/x]"], ["generate", "[/x]", "p"], ["convert", "[/x]", "[/y]"]])
def test_names_with_brackets(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "'[/x]' is no folder or file here" in mistake(capsys, *words)


@pytest.mark.parametrize("words", [["fuse", "score"], ["inspect", "replay"]])
def test_names_that_are_too_long(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert re.search(r"File name too long\.$|names have at most 255 bytes\.$", mistake(capsys, *words, "x" * 300))
