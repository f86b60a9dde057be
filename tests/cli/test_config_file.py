"""Configuration files as editors, other programs and mischief write them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyorder.cli._config_file import read_config_file
from anyorder.errors import UserError
from tests.cli.test_main import mistake


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "c.yaml"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfmodel: m\nnope: caf\xc3\xa9\n",
        "model: m\nnope: café\n".encode("utf-16"),  # as a Windows shell writes it
        b"model: m\r\nnope: 1\r\n",
        b'{"model": "m",\n\t"nope": [1, 2]}',
        b"x: &x 3\nmodel: m\nnope: *x\n",
        b"{model: m, nope: 1}",
        b"# a comment\n---\nmodel: m\nnope: null\n",
    ],
)
def test_forms_that_people_have_are_read(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    found = yaml.safe_load(read_config_file(str(file)))
    assert found["model"] == "m"
    assert "nope" in found
    assert found["nope"] in ("café", 1, [1, 2], 3, None)


BOMB = "a: &a [x]\n" + "".join(
    f"{new}: &{new} [{f'*{old}, ' * 9}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"model: m\nprompt: \xff\n", "is not UTF-8 at byte 17: save it as UTF-8."),
        ("a: &a [*a]\n", "has *a in line 1, no value or list of values: write it out."),
        ("&r\na: *r\n", "has *r in line 2, no value or list of values: write it out."),
        (BOMB, "has *a in line 2, no value or list of values: write it out."),
        ("a: &a {x: 1}\n<<: *a\n", "has settings below 'a' in line 1: write each at the left margin."),
        ("training:\n  max_steps: 3\n", "has settings below 'training' in line 2: write each at the left margin."),
        ("[1, 2]", "holds a list: write settings with values, such as seed: 0."),
        ("hello", "holds 'hello' alone: write settings with values, such as seed: 0."),
        ("a: [[1]]", "has a list within 'a' in line 1: write settings with values, such as seed: 0."),
        ("[" * 100_000, "holds a list: write settings with values, such as seed: 0."),
        ("a: " + "{a: " * 50_000, "has settings below 'a' in line 1: write each at the left margin."),
        ('{"a":' * 50_000, "has settings below 'a' in line 1: write each at the left margin."),
        ("seed: 1\nseed: 2\n", "has 'seed' twice, again in line 2: leave out one of them."),
        ('{"seed": 1, "seed": 2}', "has 'seed' twice: leave out one of them."),
        ("seed: " + "9" * 6000, "has a number of 6000 digits in line 1: give a smaller one."),
        ('{"seed": ' + "9" * 6000 + "}", "has a number of 6000 digits in line 1: give a smaller one."),
        ('model: "a\\0b"\n', "has a character in line 1 that no text has: take it out."),
        ('{"model": "\\ud800"}', "is no YAML or JSON (special characters are not allowed)"),
        ('model: "\\ud800"', "has a character in line 1 that no text has: take it out."),
        ("seed: 1\n---\nseed: 2\n", "holds a second document from line 2 on: make it a file of its own."),
        ("1: 2\n", "has '1' for a name in line 1: see the names with --help."),
        ("yes: 2\n", "has 'yes' for a name in line 1: see the names with --help."),
        ("a: !!python/name:os.system x\n", "has the tag tag:yaml.org,2002:python/name:os.system in line 1"),
        ("a: [\n", "is no YAML or JSON in line 2 (expected the node content"),
        ("a: \x07\n", "is no YAML or JSON"),
        ("a" * 1_000_001, "has more than 1,000,000 bytes: give a file of settings, not of data."),
    ],
    ids=range(26),
)
def test_what_is_no_mapping_of_settings_is_refused(file: Path, text: str | bytes, message: str) -> None:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    with pytest.raises(UserError) as error:
        read_config_file(str(file))
    assert message in str(error.value)
    assert str(error.value).startswith(f"config {str(file)!r} ")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}", "---\n"])
def test_a_file_without_settings_sets_nothing(file: Path, text: str) -> None:
    file.write_text(text)
    assert read_config_file(str(file)) == ""


@pytest.mark.parametrize("name", ["missing.yaml", "x" * 300, "a\0b", "."])
def test_files_that_cannot_be_read(name: str) -> None:
    with pytest.raises(UserError, match=r"give the path of a YAML or JSON file\.$"):
        read_config_file(name)


SCALARS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.booleans() | st.none()
NAMES = st.from_regex(r"[a-z_]{3,9}", fullmatch=True).filter(lambda name: name not in ("yes", "off", "true", "null"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    values=st.dictionaries(
        NAMES.filter(lambda name: name != "false"),
        SCALARS | st.integers(-(2**70), 2**70) | st.lists(SCALARS, max_size=3),
    )
)
def test_what_yaml_writes_is_read_as_it_was(file: Path, values: dict[str, object]) -> None:
    written = yaml.safe_dump(values, allow_unicode=True)
    file.write_text(written, encoding="utf-8", newline="")
    # PyYAML writes some line ends of Unicode, such as U+0085, so that it reads a space itself.
    assert (yaml.safe_load(read_config_file(str(file))) or {}) == yaml.safe_load(written)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nseed: 1000000000000000000000000000000\n", f"--seed is {10**30}: give a smaller number."),
        ("model: m\ntemperature: .nan\n", "--temperature is nan: give a finite number."),
        ("model: m\nstream: maybe\n", "--stream is 'maybe': give True or False."),
        ("model: m\nseed: [1]\n", "--seed is '[1]': give a whole number."),
        (
            "model_name_or_path: m\n",
            "option --model_name_or_path is unknown here: the name is model, whose value stands",
        ),
        ("model: m\ngen_length: 3\n", "option --gen_length is unknown here: the name is --max_new_tokens."),
    ],
)
def test_values_in_a_file(capsys: pytest.CaptureFixture[str], file: Path, text: str, message: str) -> None:
    file.write_text(text)
    assert message in mistake(capsys, "generate", "--config", str(file))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1" + "0" * 30], f"--seed is {10**30}: give a smaller number."),
        (["--seed", "9" * 6000], "--seed has thousands of digits: give a smaller number."),
        (["--temperature", "1e400"], "--temperature is inf: give a finite number."),
        (["--temperature", "nan"], "--temperature is 'nan': give a number."),
        (["--top_k", "[" * 5000], "...: give a whole number."),
    ],
)
def test_numbers_on_the_command_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in mistake(capsys, "generate", "m", "p", *words)


def test_no_tags_are_executed(file: Path, tmp_path: Path) -> None:
    file.write_text(f"a: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]\n")
    words = [sys.executable, "-m", "anyorder", "generate", "--config", str(file)]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 2
    assert not (tmp_path / "made").exists()
