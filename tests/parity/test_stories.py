"""stories260K, a real trained Llama, writes its published text to the character (`stories260K.md`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import anyorder

STEPS = 256
"""As many as llama2.c's `run` takes unless told otherwise."""


@pytest.fixture(scope="session")
def reference(shared_data: Path) -> str:
    """The text under the command that writes at temperature 0."""
    page = (shared_data / "stories260K" / "stories260K.md").read_text(encoding="utf-8")
    return page.split("-t 0.0\n", 1)[1].split("\n```", 1)[0]


@pytest.fixture(scope="session")
def checkpoint(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llama2.c file and its tokenizer, converted to a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("stories") / "stories260K"
    source = shared_data / "stories260K"
    anyorder.convert(source / "stories260K.bin", folder, tokenizer=source / "tok512.bin")
    return folder


@pytest.mark.parametrize(
    ("attention", "use_cache"),
    [
        ("eager", True),
        ("eager", False),
        ("sdpa", True),
        ("sdpa", False),
        pytest.param("flex", True, marks=pytest.mark.slow),  # compiles, a minute or two on a CPU
        pytest.param("flex", False, marks=pytest.mark.slow),
    ],
)
def test_published_text(checkpoint: Path, reference: str, attention: str, use_cache: bool) -> None:
    model, tokenizer = anyorder.load(checkpoint, device="cpu", attention=attention)
    out = anyorder.generate(model, tokenizer, "", max_new_tokens=STEPS, use_cache=use_cache)
    assert out.text == reference


def test_published_text_continues_its_own_beginning(checkpoint: Path, reference: str) -> None:
    """From a prompt, ragged and in a batch: prompt and text together are the published text."""
    model, tokenizer = anyorder.load(checkpoint, device="cpu")
    prompts = ["Once upon a time", reference[:201], "Once", ""]
    assert tokenizer is not None
    out = anyorder.generate(model, tokenizer, prompts, max_new_tokens=60, batch_size=3)
    assert isinstance(out.text, list)
    for prompt, text in zip(prompts, out.text, strict=True):
        assert len(text) > 100
        assert reference.startswith(prompt + text)


def test_llama2c_files_are_written_from_directly(shared_data: Path, reference: str) -> None:
    source = shared_data / "stories260K"
    for name in ("stories260K.bin", "stories260K.v1.bin"):
        model, tokenizer = anyorder.load(source / name, device="cpu", tokenizer=source / "tok512.bin")
        assert anyorder.generate(model, tokenizer, "", max_new_tokens=STEPS).text == reference
