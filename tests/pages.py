"""A page of the documentation, followed as a reader does: block after block, in one folder.

What a reader is taken to have, and what the tests run instead of what stands on a page, is all in the tables here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import anyorder
from tests import vision
from tests.published import write_llada

MINUTES = 20
"""That a block may take, on a machine that is busy with other things."""

BLOCK = re.compile(
    r"^```(?P<language>sh|console|python)\n(?P<code>.*?)^```$\n(?:\n```text\n(?P<printed>.*?)```$)?",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """Code on a page.

    Attributes:
        language: sh, console or python.
        code: as it is printed.
        printed: what the page shows below it, if it does.
    """

    language: str
    code: str
    printed: str | None


def blocks_of(page: str) -> list[Block]:
    """The blocks of a page that can be run."""
    return [Block(**match.groupdict()) for match in BLOCK.finditer(page)]


# ---- what stands in for something else -------------------------------------------------------------

REPLACED = (
    (r"^make demo\b", "anyorder demo", "the environment is there"),
    (r"^make (test|bench)\b.*", "", "these tests would run themselves"),
    (r"^make chat\b.*", "", "serves in a browser until it is stopped; tests/serving/test_page.py drives that page"),
    (r"^(anyorder chat.*)", r"echo 'Once upon a time' | \1 --max_new_tokens 4", "what a person types"),
    (r"--nproc_per_node 8\b", "--nproc_per_node 2", "eight processes on two cores"),
    # Measurements of minutes to hours, which mean nothing on a busy machine; tests/benchmarks runs them in small.
    (r"^(OMP_NUM_THREADS=1 )?python benchmarks/.*", "", "a measurement"),
    (r"^(OMP_NUM_THREADS=1 )?anyorder bench .*", "", "a measurement"),
)
"""Commands that are replaced, and why: patterns within a line."""


def shell_script(block: Block) -> str:
    """What a shell runs of a block."""
    code = block.code.replace("\\\n", " ")
    if block.language == "console":
        code = re.sub(r"^\$ ", "", code, flags=re.MULTILINE)
    for pattern, replacement, _ in REPLACED:
        code = re.sub(pattern, replacement, code, flags=re.MULTILINE)
    return code


def _link(name: str) -> Callable[[Path, Path], None]:
    return lambda data, place: place.symlink_to(data / name)


def _stories(begin: int, end: int) -> Callable[[Path, Path], None]:
    def write(data: Path, place: Path) -> None:
        text = (data / "tinystories" / "tinystories_lowercased_4M.txt").read_text(encoding="utf-8")
        place.write_text(text[begin:end], encoding="utf-8")

    return write


def _story_lines(data: Path, place: Path) -> None:
    text = (data / "tinystories" / "tinystories_lowercased_4M.txt").read_text(encoding="utf-8")[:20_000]
    place.write_text("".join(json.dumps({"text": line}) + "\n" for line in text.splitlines() if line))


def _stories260k(data: Path, place: Path) -> None:
    source = data / "stories260K"
    anyorder.convert(source / "stories260K.bin", place, tokenizer=source / "tok512.bin")


def _answers(data: Path, place: Path) -> None:
    with (data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines:
        problems = [json.loads(next(lines)) for _ in range(40)]
    short = [{"prompt": problem["question"][:60], "response": problem["answer"][:40]} for problem in problems]
    place.write_text("".join(json.dumps(record) + "\n" for record in short))


def _conversations(data: Path, place: Path) -> None:
    whole = json.loads((data / "sharegpt" / "dummy_conversation.json").read_text(encoding="utf-8"))
    place.write_text(json.dumps(whole[:30]))


def _webquestions(data: Path, place: Path) -> None:
    (place / "main").mkdir(parents=True)
    questions = json.loads((data / "webquestions" / "main" / "devtest.json").read_text(encoding="utf-8"))
    (place / "main" / "test.json").write_text(json.dumps(questions[:9]))


def _llada(data: Path, place: Path) -> None:
    write_llada(place)


def _demo(data: Path, place: Path) -> None:
    words = [sys.executable, "-m", "anyorder", "demo", "--output", str(place), "--steps", "200"]
    subprocess.run(words, check=True, capture_output=True)


def _seeing(data: Path, place: Path) -> None:
    torch.manual_seed(0)
    anyorder.save(vision.network(), vision.tokenizer(), place)


FILES: dict[str, Callable[[Path, Path], None]] = {
    "stories260K.bin": _link("stories260K/stories260K.bin"),
    "tok512.bin": _link("stories260K/tok512.bin"),
    "stories260K": _stories260k,
    "demo": _demo,
    "stories.txt": _stories(0, 60_000),
    "held-back.txt": _stories(-4000, -1),
    "stories.jsonl": _story_lines,
    "answers.jsonl": _answers,
    "chats.json": _conversations,
    "conversations.json": _conversations,
    "alpaca_data.json": _link("llamafactory_demo/alpaca_en_demo.json"),
    "webquestions": _webquestions,
    "SmolLM2-135M-Instruct.Q4_1.gguf": _stories260k,  # whatever the name ends in
    "seeing": _seeing,
    "photo.png": _link("images/coffee.png"),
}
"""What a reader brings along, by the name that pages give it, unless a block before makes it."""

HUB: dict[str, Callable[[Path, Path], None]] = {
    "GSAI-ML/LLaDA-8B-Instruct": _llada,
    "meta-llama/Llama-3.2-1B": _stories260k,
    "meta-llama/Llama-3.2-3B-Instruct": _stories260k,
}
"""Small networks in the hub's cache, in place of those that are downloaded."""


def _makes(name: str, code: str) -> bool:
    """Whether a page makes a file itself."""
    return any(
        re.search(rf"{pattern}{re.escape(name)}(?![\w./-])", code)
        for pattern in (r"--output ", r"\bconvert \S+ ", r"> ", r"^make ")
    )


# ---- running ---------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Somebody who follows a page in a folder that must be the current one.

    Attributes:
        folder: the current folder.
        data: the project's data.
        names: what Python's blocks have defined.
    """

    folder: Path
    data: Path
    names: dict[str, object] = field(default_factory=dict)

    def bring(self, page: str) -> None:
        """Put what the page names into the folder and into the hub's cache."""
        code = "\n".join(block.code for block in blocks_of(page))
        for name, make in FILES.items():
            if re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", code) and not _makes(name, code):
                make(self.data, self.folder / name)
        for name, make in HUB.items():
            if name in code:
                place = self.cache / f"models--{name.replace('/', '--')}"
                (place / "refs").mkdir(parents=True)
                (place / "refs" / "main").write_text("0" * 40)
                make(self.data, place / "snapshots" / ("0" * 40))

    @property
    def cache(self) -> Path:
        """The hub's, which nothing is fetched into."""
        return self.folder / ".cache" / "hub"

    def run(self, block: Block) -> str:
        """What a block prints.

        Raises:
            AssertionError: a command fails.
        """
        if block.language == "python":
            return self._run_python(block.code)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", shell_script(block)], cwd=self.folder, capture_output=True, text=True,
            env={**os.environ, "PATH": path, "HF_HOME": str(self.cache.parent), "HF_HUB_OFFLINE": "1"},
            timeout=60 * MINUTES, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{block.code}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def _run_python(self, code: str) -> str:
        """Goes on in one session."""
        script = self.folder / "block.py"
        script.write_text(code, encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            self.names = runpy.run_path(str(script), init_globals=self.names)
        script.unlink()
        shutil.rmtree(self.folder / "__pycache__", ignore_errors=True)
        return printed.getvalue()
