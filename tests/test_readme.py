"""The README, followed from its first block to its last as a new user would, each block within ten minutes."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

MINUTES = 10

BLOCK = re.compile(r"```(?P<language>sh|console|python)\n(?P<code>.*?)```", re.DOTALL)


def shell_script(language: str, code: str) -> str:
    """What a shell runs of a block; of `make`'s targets `demo` alone, as the command behind it."""
    if language == "console":
        code = re.sub(r"^\$ ", "", code, flags=re.MULTILINE)
    code = re.sub(r"^make demo\b", "anyorder demo", code, flags=re.MULTILINE)
    return re.sub(r"^make (test|bench)\b.*\n", "", code, flags=re.MULTILINE)


@pytest.mark.slow
def test_every_block_runs_after_those_before_it(project_root: Path, tmp_path: Path, shared_data: Path) -> None:
    for name in ("stories260K.bin", "tok512.bin"):
        (tmp_path / name).symlink_to(shared_data / "stories260K" / name)
    blocks = list(BLOCK.finditer((project_root / "README.md").read_text(encoding="utf-8")))
    assert {block["language"] for block in blocks} == {"sh", "console", "python"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script, said, seconds = "", [], []
    for block in blocks:
        if block["language"] == "python":
            # A reader goes on in one session: each block runs behind those before it.
            script += block["code"]
            words = [sys.executable, "-c", script]
        else:
            words = ["bash", "-euo", "pipefail", "-c", shell_script(block["language"], block["code"])]
        started = time.monotonic()
        ran = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, "PATH": path, "HF_HOME": str(tmp_path / "cache")},
            capture_output=True, text=True, timeout=60 * MINUTES, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{block['code']}\n{ran.stdout}\n{ran.stderr}"
        seconds.append(round(time.monotonic() - started))
        said.append(ran.stdout)
    (tmp_path / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")

    # What a block leaves is good enough for those after it: the network has learnt, and writes words of its texts.
    log = json.loads((tmp_path / "trained" / "log.json").read_text(encoding="utf-8"))["log"]
    assert [entry["loss"] for entry in log if "loss" in entry][-1] < math.log(2048) - 2
    texts = (tmp_path / "demo" / "texts.txt").read_text(encoding="utf-8")
    known = set(re.findall(r"[a-z]{3,}", texts))
    last_python = max(number for number, block in enumerate(blocks) if block["language"] == "python")
    written = re.findall(r"[a-z]{3,}", said[last_python])
    assert len(written) >= 3
    assert sum(word in known for word in written) > len(written) / 2
