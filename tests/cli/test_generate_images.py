"""`anyorder generate` with images, and `anyorder info` about a network with vision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import anyorder
from anyorder.cli import main
from tests import vision
from tests.api.llama4_tiles import image
from tests.cli.test_main import mistake


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, and an image in it."""
    folder = tmp_path_factory.mktemp("seeing") / "network"
    torch.manual_seed(0)
    anyorder.save(vision.network(), vision.tokenizer(), folder)
    image(90, 40).save(folder / "wide.png")
    image(30, 30).save(folder / "small.png")
    return folder


def written(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["generate", *map(str, words), "--max_new_tokens", "4"]) == 0
    return capsys.readouterr().out


def test_images_of_a_prompt(capsys: pytest.CaptureFixture[str], seeing: Path) -> None:
    model, tokenizer = anyorder.load(seeing)
    prompt, files = "a <|image|> is <|image|>", [seeing / "wide.png", seeing / "small.png"]
    images = [word for file in files for word in ("--image", file)]
    for order in ("left-to-right", "diffusion"):
        options = {"images": files, "order": order, "max_new_tokens": 4}
        expected = anyorder.generate(model, tokenizer, prompt, **options)
        assert written(capsys, seeing, prompt, *images, "--order", order) == f"{expected.full_text}\n"
    fields = json.loads(written(capsys, seeing, prompt, *images, "--json"))
    assert fields["token_ids"] == anyorder.generate(model, tokenizer, prompt, images=files, max_new_tokens=4).token_ids


def test_several_prompts_have_the_same_images(capsys: pytest.CaptureFixture[str], seeing: Path, tmp_path: Path) -> None:
    lines = ["what is <|image|>", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "say it"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ["--prompts_file", tmp_path / "prompts.jsonl", "--image", seeing / "wide.png", "--json"]
    texts = [json.loads(line) for line in written(capsys, seeing, *given).splitlines()]
    model, tokenizer = anyorder.load(seeing)
    prompts = ["what is <|image|>", "<|image|>", "say it"]
    expected = anyorder.generate(model, tokenizer, prompts, images=[[seeing / "wide.png"]] * 3, max_new_tokens=4)
    assert [text["token_ids"] for text in texts] == expected.token_ids
    own = [{"type": "image", "path": str(seeing / "wide.png")}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": own}]}))
    [text] = written(capsys, seeing, "--prompts_file", tmp_path / "own.jsonl", "--json").splitlines()
    assert json.loads(text)["token_ids"] == expected.token_ids[1]


def test_on_a_terminal(capsys: pytest.CaptureFixture[str], seeing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    words = [seeing, "what is <|image|>", "--image", seeing / "wide.png"]
    shown = [written(capsys, *words), written(capsys, *words, "--show", "--order", "diffusion")]
    assert "what is" in shown[0]
    assert shown[1].count("▒") >= 12


def test_what_a_network_sees(capsys: pytest.CaptureFixture[str], seeing: Path) -> None:
    assert main(["info", str(seeing)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "vision 2 layers of width 16; an image is up to 4 tiles of 56 x 56 pixels, each 4 rows" in out


def test_mistakes(capsys: pytest.CaptureFixture[str], seeing: Path, tmp_path: Path) -> None:
    for words, message in (
        ([seeing, "what", "--image", "none.png"], "image 'none.png' is no file here"),
        ([seeing, "<|image|> <|image|>", "--image", str(seeing / "wide.png")], "prompt 0 has 2 <|image|>s for 1 image"),
    ):
        assert message in mistake(capsys, "generate", *map(str, words))
    torch.manual_seed(0)
    anyorder.save(vision.network(vision=None), vision.tokenizer(), tmp_path / "blind")
    words = ["generate", str(tmp_path / "blind"), "what", "--image", str(seeing / "wide.png")]
    assert "there are images, and this network has no vision" in mistake(capsys, *words)
