"""`anyorder demo`: the network of the package in all ways, then a training on texts that every machine has."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from anyorder.errors import UserError

if TYPE_CHECKING:
    from anyorder.cli._console import PlainConsole

RECORD = "demo.json"
"""In the finished folder: how it was made. Only folders with this file are ever replaced."""

TEXTS = "texts.txt"
"""In the finished folder: what it was trained on, to go on from."""

PAGE = "replay.html"
"""In the folder, finished or not: how a text came into being."""

PROMPTS = ("The", "def", "class")

SOURCE_BYTES = 150_000
VOCABULARY = 2048
LENGTH = 128
BATCH = 4
STEPS = 1500
LEARNING_RATE = 6e-3


def command(*, output: str = "demo", retrain: bool = False, steps: int = STEPS, seed: int = 0) -> None:
    """Write in every way with a small network, then train another.

    Args:
        output: Folder for the trained network and a page that replays a text; if the network is there already, it
            only writes. Ctrl-C leaves out the training.
        retrain: Train anew, and replace the folder.
        steps: Optimizer steps; the default takes about a minute on two cores.
        seed: Decides the first weights, the order of the texts and what is drawn.
    """
    from anyorder.cli._console import PlainConsole
    from anyorder.utils.files import check_place

    # Before PyTorch is imported: threads that wait by spinning made tiny steps ten times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    folder = Path(output)
    console = PlainConsole()
    finished = (folder / RECORD).is_file()
    if (
        not finished
        and folder.exists()
        and not (folder.is_dir() and {file.name for file in folder.iterdir()} <= {PAGE})
    ):
        raise UserError(f"output is {output!r}, which holds something else: give the name of a new folder.")
    if not folder.exists():
        check_place(folder, folder=True)  # before minutes are spent
    if finished and not retrain:
        _record(folder)  # before anything is shown
    _show(folder, seed, console)
    if retrain or not finished:
        _train(folder, steps, seed, console)
    _write(folder, seed, console)


def _show(folder: Path, seed: int, console: PlainConsole) -> None:
    from anyorder.cli._showing import show
    from anyorder.utils.files import whole_file

    page = show(console, seed)
    file = folder / PAGE
    if not file.exists():
        folder.mkdir(exist_ok=True)
        with whole_file(file) as partial:
            partial.write_text(page, encoding="utf-8")
    console.print(f"\nhow masked diffusion wrote it, step by step: open {file} in a browser\n", soft_wrap=True)


def _train(folder: Path, steps: int, seed: int, console: PlainConsole) -> None:
    started = time.perf_counter()
    with console.status("reading Python's own documentation and sources"):
        import torch

        import anyorder
        from anyorder.checkpoints.tokenizer.encoding import plain_tokens_of
        from anyorder.cli._progress import TrainingProgress
        from anyorder.data import pack, python_texts, train_tokenizer
        from anyorder.data.tokenizer import END_OF_TEXT
        from anyorder.model.config import ModelConfig
        from anyorder.model.llama import Llama
        from anyorder.model.rope import Rotary
        from anyorder.training import train_causal

        texts = python_texts(SOURCE_BYTES)
        tokenizer = train_tokenizer(texts, VOCABULARY)
        ids_NL = pack(plain_tokens_of(tokenizer, texts), LENGTH, tokenizer.eos_token_id)
        torch.manual_seed(seed)
        model = Llama(
            ModelConfig(
                vocab_size=len(tokenizer),
                hidden_size=64,
                intermediate_size=160,
                num_hidden_layers=4,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=LENGTH,
                rotary=Rotary(theta=10_000.0),
                tie_word_embeddings=True,
                eos_token_ids=(tokenizer.eos_token_id,),
            )
        )
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"training a Llama of {size / 1e6:.1f} million parameters on {sum(map(len, texts)) / 1e6:.1f} million "
        "characters of Python's documentation and sources"
    )
    with TrainingProgress(console) as progress:
        loss = train_causal(
            model, ids_NL, steps=steps, batch_size=BATCH, learning_rate=LEARNING_RATE, seed=seed, callbacks=[progress]
        )
    record = {"steps": steps, "seed": seed, "loss": loss, "seconds": time.perf_counter() - started}
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}-") as beside:
        anyorder.save(model, tokenizer, Path(beside) / "new")
        parted = f"\n{END_OF_TEXT}\n".join(texts)
        (Path(beside) / "new" / TEXTS).write_text(parted, encoding="utf-8")
        shutil.copy(folder / PAGE, Path(beside) / "new" / PAGE)
        (Path(beside) / "new" / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
        folder.rename(Path(beside) / "old")  # goes only now that the new one is whole
        (Path(beside) / "new").rename(folder)


def _record(folder: Path) -> tuple[int, float, float]:
    """Read steps, seconds and loss of the training."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return record["steps"], float(record["seconds"]), float(record["loss"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{str(folder / RECORD)!r} is damaged: run `anyorder demo --retrain`.") from None


def _write(folder: Path, seed: int, console: PlainConsole) -> None:
    import anyorder
    from anyorder.cli._results import print_writing

    steps, seconds, loss = _record(folder)
    console.print(f"{folder}: {steps} steps in {seconds:.0f} s, final loss {loss:.2f} nats per token\n", soft_wrap=True)
    model, tokenizer = anyorder.load(folder)
    out = anyorder.generate(model, tokenizer, list(PROMPTS), max_new_tokens=80, temperature=0.6, top_p=0.9, seed=seed)
    assert isinstance(out.text, list)
    for prompt, text in zip(PROMPTS, out.text, strict=True):
        print_writing(prompt, text)
        console.rule(style="dim")
    console.print(out.trace.summary(), style="dim", soft_wrap=True)
    console.print(f'more: anyorder generate {folder} "import" --temperature 0.6', style="dim", soft_wrap=True)
