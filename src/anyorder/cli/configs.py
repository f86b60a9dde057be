"""`anyorder configs`."""

from __future__ import annotations

from pathlib import Path


def command(folder: str, *, data: Path = Path("data.jsonl"), init: str | None = None) -> None:
    """Write commented sample configurations for `pretrain` and `sft`.

    Args:
        folder: New folder for the files, each of which `anyorder pretrain --config FILE` or `anyorder sft --config
            FILE` takes.
        data: What they train on: file or folder of JSONL, JSON or text.
        init: Checkpoint that they start from. Unless given, those for `pretrain` make a network, and those for `sft`
            start from what the file for `pretrain` with the same objective trains.
    """
    from anyorder.cli._console import PlainConsole
    from anyorder.cli._sample_configs import sample_configurations
    from anyorder.utils.files import whole_folder

    console = PlainConsole()
    with whole_folder(Path(folder)) as partial:
        files = sample_configurations(Path(folder), data, init)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
    for name in files:
        if name.endswith(".json"):
            continue
        command_name = name.partition("-")[0]
        console.print(f"anyorder {command_name} --config {Path(folder) / name}", soft_wrap=True)
