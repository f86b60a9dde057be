"""Speed against transformers' Llama, and llama.cpp's if installed: in one run, taking turns, on the same weights.

Timings alternate between the candidates, so that what else the machine does meets all of them, and
medians are compared. Decoding is bound by reading the weights once a token, so its share of the
memory bandwidth, measured in the same run, bounds what is left to gain.
"""

from __future__ import annotations

import importlib.util
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from anyorder.checkpoints import gguf
from anyorder.decoding.left_to_right.decoder import left_to_right_steps
from anyorder.errors import UserError
from anyorder.model.compiled import compiler_at_hand
from anyorder.model.config import ModelConfig
from anyorder.model.int8 import to_int8
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Task = Literal["decode", "prefill", "train"]

SIZES: dict[str, ModelConfig] = {
    "260K": ModelConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=2048, tie_word_embeddings=True, rotary=Rotary(theta=10_000.0),
    ),
    "125M": ModelConfig(
        vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=2048, rotary=Rotary(theta=10_000.0),
    ),
}  # fmt: skip
"""Networks by name: that of stories260K, and one of 125 million weights."""

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""The processor's own time leaves out what others do meanwhile; with more than one thread it is the sum of theirs."""

PROMPT_TOKENS = 16  # before decoding starts
PREFILL_TOKENS = 512
TRAIN_SHAPE = (4, 256)  # sequences, tokens of each


@dataclass(frozen=True)
class Timing:
    """One candidate at one task.

    Attributes:
        size, dtype, task: what was measured.
        candidate: "transformers", "anyorder" or "llama.cpp", and how.
        tokens: that one run reads or writes.
        seconds: of each run.
        first: seconds of the run before those, compilation included.
        weight_bytes: bytes of weights that one token of decoding reads.
    """

    size: str
    dtype: str
    task: Task
    candidate: str
    tokens: int
    seconds: tuple[float, ...]
    first: float
    weight_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """By the median of the runs."""
        return self.tokens / statistics.median(self.seconds)


def machine() -> dict[str, str]:
    """Describe what the numbers hold for: processor, threads, versions."""
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def bandwidth(device: torch.device) -> float:
    """Measure the bytes per second that a sum over 256 MiB reads, the best of ten."""
    numbers = torch.ones(64 * 2**20, device=device)
    return numbers.nbytes / min(_alternate({"sum": lambda: numbers.sum().item()}, 10)["sum"])


def compare(
    size: str, dtype: torch.dtype, tasks: Sequence[Task], *, new_tokens: int = 128, repeats: int = 5,
    device: torch.device | None = None, clock: str = "wall",
) -> list[Timing]:  # fmt: skip
    """Measure all candidates at each task.

    Args:
        size: a name in `SIZES`.
        dtype: of the weights.
        tasks: "decode" (a batch of one, from a short prompt), "prefill" (one text), "train" (forward, backward and
            AdamW, without weight decay).
        new_tokens: tokens to decode in each run.
        repeats: runs of each candidate, after one that is not counted.
        device: a CPU unless given.
        clock: a name in `CLOCKS`.

    Raises:
        UserError: the size or the clock is unknown.
    """
    if clock not in CLOCKS:
        raise UserError(f"clock is {clock!r}: choose one of {', '.join(CLOCKS)}.")
    if size not in SIZES:
        raise UserError(f"size is {size!r}: choose one of {', '.join(SIZES)}.")
    device = torch.device("cpu") if device is None else device
    torch.manual_seed(0)
    ours = Llama(SIZES[size]).to(device, dtype).eval()
    theirs = twin(ours)
    timings = []
    for task in tasks:
        runs, tokens = _runs(task, ours, theirs, new_tokens)
        first = {name: _seconds(run) for name, run in runs.items()}
        for name, seconds in _alternate(runs, repeats, CLOCKS[clock]).items():
            bytes_read = _weight_bytes(ours) // (1 if "int8" not in name else ours.dtype.itemsize)
            timings.append(
                Timing(
                    size, str(dtype).removeprefix("torch."), task, name, tokens, tuple(seconds), first[name], bytes_read
                )
            )
    return timings


def twin(model: Llama) -> LlamaForCausalLM:
    """transformers' Llama with the same weights, where it has that shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    config = LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, max_position_embeddings=c.max_position_embeddings,
        rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=c.tie_word_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": c.rotary.theta},
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    theirs: Any = LlamaForCausalLM(config)
    theirs = theirs.to(model.device, model.dtype).eval()
    theirs.load_state_dict(model.state_dict())
    return cast("LlamaForCausalLM", theirs)


def _runs(
    task: Task, ours: Llama, theirs: LlamaForCausalLM, new_tokens: int
) -> tuple[dict[str, Callable[[], object]], int]:
    """Return one run of each candidate, and the tokens of a run."""
    can_compile = compiler_at_hand(ours.device)
    random = torch.Generator().manual_seed(0)
    shape = {"decode": (1, PROMPT_TOKENS), "prefill": (1, PREFILL_TOKENS), "train": TRAIN_SHAPE}[task]
    ids = torch.randint(0, ours.config.vocab_size, shape, generator=random).to(ours.device)
    if task == "decode":
        return _decoders(ours, theirs, ids, new_tokens, can_compile), new_tokens
    run_of = {"prefill": _prefill, "train": _train_step}[task]
    runs = {"transformers, eager": run_of(theirs, ids), "anyorder, eager": run_of(ours, ids)}
    if can_compile:
        compiled = _copy(ours)
        compiled.compile()
        runs["transformers, compiled"] = run_of(torch.compile(theirs), ids)
        runs["anyorder, compiled"] = run_of(compiled, ids)
    return runs, ids.numel()


def _decoders(
    ours: Llama, theirs: Any, ids: torch.Tensor, new_tokens: int, can_compile: bool
) -> dict[str, Callable[[], object]]:
    prompt = ids.tolist()

    def decode(model: Llama, compiled: bool) -> Callable[[], object]:
        return lambda: list(
            left_to_right_steps(model, prompt, sample_ids=[0], max_new_tokens=new_tokens, compile=compiled)
        )

    runs: dict[str, Callable[[], object]] = {
        "transformers, eager": lambda: theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens,
            do_sample=False,
        ),
        "anyorder, eager": decode(ours, False),
    }  # fmt: skip
    if can_compile:
        runs["anyorder, compiled"] = decode(ours, True)
        runs["anyorder, compiled, int8"] = decode(to_int8(_copy(ours)), True)
    if ours.device.type == "cpu" and has_llama_cpp():
        runs["llama.cpp"] = llama_cpp_decoder(ours, prompt[0], new_tokens)
    return runs


def has_llama_cpp() -> bool:
    """Whether llama.cpp can be measured too."""
    return all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))


def llama_cpp_decoder(model: Llama, prompt: Sequence[int], new_tokens: int) -> Callable[[], list[int]]:
    """Return a function with which llama.cpp writes most probable tokens with the same weights."""
    from llama_cpp import Llama as LlamaCpp

    with TemporaryDirectory() as folder:
        file = Path(folder) / "network.gguf"
        gguf.write(model, file)
        threads = torch.get_num_threads()
        theirs = LlamaCpp(
            str(file), n_ctx=len(prompt) + new_tokens, n_threads=threads, n_threads_batch=threads, use_mmap=False,
            verbose=False,
        )  # fmt: skip

    def run() -> list[int]:
        theirs.reset()  # or it would not read the prompt anew
        return list(itertools.islice(theirs.generate(list(prompt), temp=0.0, repeat_penalty=1.0), new_tokens))

    return run


def _copy(model: Llama) -> Llama:
    copy = Llama(model.config).to(model.device, model.dtype).eval()
    copy.load_state_dict(model.state_dict())
    return copy


def _prefill(model: Callable[..., Any], ids: torch.Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> object:
        return model(ids).logits[0, -1, 0].item()

    return run


def _train_step(model: Any, ids: torch.Tensor) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)

    def run() -> object:
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def _weight_bytes(model: Llama) -> int:
    """Count the bytes of the weights that each token reads: all but the rows of the embedding."""
    head_is_embedding = model.config.tie_word_embeddings
    embedding = 0 if head_is_embedding else model.model.embed_tokens.weight.nbytes
    return sum(weight.nbytes for weight in model.parameters()) - embedding


def _alternate(
    runs: Mapping[str, Callable[[], object]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Measure the seconds of each run, all of them taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(_seconds(run, clock))
    return seconds


def _seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
