"""How much memory a process takes while it reads its part of a network."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

import anyorder
from anyorder.parallel import begin


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def peak_of(call: Callable[[], object]) -> int:
    """The most memory that a process has during a call, beyond what it had before."""
    before, most, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.0005):
            most = max(most, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    kept = call()
    most = max(most, anonymous_bytes())
    done.set()
    watcher.join()
    assert kept is not None
    return most - before


def read_by_parts(small: Path, large: Path) -> None:
    """Reading takes at most 1.2 times the bytes of the part."""
    processes = begin(dist.get_world_size(), "cpu")
    anyorder.load(small, device="cpu", processes=processes)  # what is imported and allocated once
    held = []

    def load() -> object:
        model, _ = anyorder.load(large, device="cpu", processes=processes)
        held.append(sum(getattr(weight, "_local_tensor", weight).nbytes for weight in model.parameters()))
        return model

    peak = peak_of(load)
    assert held[0] > 50e6
    assert peak <= 1.2 * held[0], f"{peak / held[0]:.3f} times the part"
