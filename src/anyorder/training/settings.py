"""The settings of a training, as frozen records that are checked when they are built; nothing here needs PyTorch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, Self

from anyorder.errors import UserError
from anyorder.model.modes import KINDS, ModeKind
from anyorder.orders.names import MIXTURE, objective_named, objectives
from anyorder.utils.annotations import Listed, check_fields, requirement

STEPS = 1000
"""Optimizer steps of a training that names neither steps nor epochs."""

LEARNING_RATES = {"from scratch": 1e-3, "init": 1e-4, "sft": 2e-5, "adapters": 2e-4}
"""The highest learning rate unless given: of a new network, of whole texts from init, of answers, of adapters."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings that every training has, whatever its objective and its data.

    Attributes:
        steps: Optimizer steps; 1000 unless given, or epochs are.
        epochs: Instead of steps, how many times the data are read; 0.5 takes half of them.
        batch_size: Samples that a process reads at a time.
        accumulation: Batches of each process whose gradients make one step; the same as one larger batch.
        learning_rate: The highest, at the end of the warm-up; 1e-3 unless given.
        warmup: Steps in which the learning rate rises to that; below 1, a share of all steps.
        schedule: How the learning rate goes on: cosine and linear fall to 0 at the last step, constant stays.
        weight_decay: Of the matrices; norms and biases have none.
        clip: Maximum gradient norm.
        balance_loss: Weight of a term of the loss that keeps experts of a mixture equally busy, such as 0.01.
        balance_bias: Step by which the bias of a busy expert falls after each optimizer step, and that of an idle one
            rises, such as 0.001; for mixtures with such biases.
        precision: What the products are computed in; weights and optimizer stay float32. float16 needs a GPU, and
            scales the loss.
        activation_checkpointing: Compute layers again in the backward pass instead of keeping what they made: less
            memory, a third more time.
        tensor_parallel: Processes that one network is split over, as torchrun starts them; groups of so many share out
            the samples.
        fsdp: Shard weights, gradients and moments over the processes, or over the groups of tensor_parallel
            (PyTorch's fully sharded data parallelism).
        seed: Decides first weights, the order of the samples, and all draws.
        log_every: Steps between two entries of the log, each the mean loss since the last one.
        evaluate_every: Steps between two evaluations on the validation data; 0 evaluates at the end alone.
        save_every: Steps between two checkpoints, from which a training can be resumed; there is one at the end, too. 0
            makes none, unless the training is interrupted.
        keep: Checkpoints that stay, the latest ones.
        workers: Processes beside the training that read data and make training inputs of them; 0 does it in between.

    Raises:
        UserError: a field has a value that cannot be, or two contradict each other.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 8
    accumulation: int = 1
    learning_rate: float | None = None
    warmup: float = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    clip: float = 1.0
    balance_loss: float = 0.0
    balance_bias: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    activation_checkpointing: bool = False
    tensor_parallel: int = 1
    fsdp: bool = False
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 0
    save_every: int = 500
    keep: int = 2
    workers: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require = requirement(self)
        if self.steps is not None and self.epochs is not None:
            raise UserError(f"steps is {self.steps} beside epochs, which is {self.epochs:g}: leave out one of them.")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        for name in (
            "steps", "epochs", "batch_size", "accumulation", "learning_rate", "clip", "tensor_parallel", "log_every",
            "keep",
        ):  # fmt: skip
            value = getattr(self, name)
            require(name, value is None or value > 0, "give a number above 0")
        for name in (
            "warmup", "weight_decay", "balance_loss", "balance_bias", "evaluate_every", "save_every", "workers",
        ):  # fmt: skip
            require(name, getattr(self, name) >= 0, "give 0 or a number above")
        require("seed", 0 <= self.seed < 2**32, f"give a whole number from 0 to {2**32 - 1}")
        fewer = self.steps is None or self.warmup < self.steps
        require("warmup", fewer, f"give less than all {self.steps} steps")
        scaled = self.precision == "float16" and (self.fsdp or self.tensor_parallel > 1)
        require("precision", not scaled, "the loss of a network in parts is not scaled, so give bfloat16 or float32")

    @property
    def total_steps(self) -> int:
        """Optimizer steps, once they are known."""
        assert self.steps is not None, "resolved by in_steps"
        return self.steps

    def in_steps(self, rows: int, processes: int) -> Self:
        """The same training, its epochs as optimizer steps.

        Args:
            rows: of the data, each a sample of every epoch.
            processes: that share out the samples of a step.
        """
        if self.epochs is None:
            return self
        samples = self.batch_size * self.accumulation * processes
        steps = max(1, math.ceil(round(self.epochs * rows / samples, 6)))
        return dataclasses.replace(self, steps=steps, epochs=None)


BLOCK_LENGTH = 32
"""Tokens of a block of a network that has no blocks yet."""


@dataclass(frozen=True, kw_only=True)
class Run(Training):
    """A whole training: from data and a network to a trained network in a folder.

    Attributes:
        data: File or folder of JSON, text or tables.
        output: New folder for the trained network, its curves and its checkpoints.
        objective: autoregressive, permutation, masked-diffusion, block-diffusion, or mixture, of several in given
            shares; also the name of the mode that it trains, such as diffusion or blocks:32. Unless given, that of
            the default mode of the network of init, and from scratch autoregressive.
        init: Checkpoint to start from: a folder, a file or a hub id.
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the checkpoint; without both, one is
            made from the data.
        vocab_size: Tokens of a tokenizer that is made from the data.
        width: Hidden size of a network from scratch.
        layers: Layers of a network from scratch.
        heads: Attention heads of a network from scratch.
        shape: Instead of these, a config.json of the network from scratch, such as that of anyorder configs; its
            vocabulary and special tokens become the tokenizer's.
        length: Tokens of a sample.
        rope_scaling: How the rotary embeddings of a network of init are scaled for samples longer than those that it
            was trained on; the factor follows from length.
        validation: File or folder of data for validation, on which the loss is computed without training.
        documents: Of plain text, what is one document: the file, the lines between empty ones, or a line.
        template: Chat template of dialogues, in Jinja or a file with it; the tokenizer's own, or a plain one, unless
            given.
        skip_bad_lines: Leave out lines that cannot be used, and say how many, instead of stopping at the first.
        last_answer_only: For fine-tuning, train on the last answer of each dialogue alone.
        streaming: Read and tokenise data anew during the training, in the order of the files, for what does not fit
            on the disk twice.
        cache_dir: Where prepared data are kept; a folder of the library datasets unless given.
        shares: For a mixture, objectives with their shares, such as masked-diffusion=0.5; may be repeated.
        mixture_by: For a mixture, whether each sample or each step draws its objective. Samples of several objectives
            are padded to the rows of the longest, so that a step of one objective is faster. Unless given, sample, or
            step where the losses are of different units.
        learning_rate: The highest, at the end of the warm-up. Unless given, 1e-3 from scratch, 1e-4 for whole texts
            from init, 2e-5 for answers, 2e-4 for low-rank adapters; small networks bear more.
        order_schedule: For permutation, the orders of the samples, and how they change.
        predicted: For permutation, the share of the tokens that is predicted; each costs a row.
        block_length: For block diffusion, tokens of a block; those of the network of init, or 32, unless given.
        mask_token: For diffusion, the token that hides others, as text or id; added to the vocabulary if it has none.
        times: For diffusion, how the noise levels of a step are drawn; stratified and antithetic ones vary less.
        eps: For diffusion, the lowest probability with which a token is masked.
        random_length_prob: For masked diffusion of whole texts, the share of the steps whose samples are cropped to a
            random length.
        shifted: For masked diffusion, predict a token at the row before it, as a causal network does; a network of
            init that diffuses like this keeps it.
        opening_steps: For masked diffusion from a causal network, steps over which its mask is opened.
        lora_rank: Above 0, train low-rank adapters of this rank and query rows alone; they are merged at the end.
        tensorboard: Write the log for TensorBoard, too.
        wandb: Send the log to Weights & Biases, too.
        resume: Resume from the latest checkpoint in the output folder.
    """

    data: Path
    output: Path
    objective: str | None = None
    init: str | None = None
    tokenizer: str | None = None
    vocab_size: int = 4096
    width: int = 256
    layers: int = 6
    heads: int = 4
    shape: Path | None = None
    length: int = 256
    rope_scaling: Literal["linear", "yarn", "llama3"] | None = None
    validation: Path | None = None
    documents: Literal["file", "paragraphs", "lines"] = "file"
    template: str | None = None
    skip_bad_lines: bool = False
    last_answer_only: bool = False
    streaming: bool = False
    cache_dir: Path | None = None
    shares: list[Listed] = field(default_factory=list)
    mixture_by: Literal["sample", "step"] | None = None
    order_schedule: Literal["random", "left-to-right", "spans", "growing", "random-to-left", "left-to-random"] = (
        "random"
    )
    predicted: float = 1.0
    block_length: int | None = None
    mask_token: str | int = "<|mask|>"
    times: Literal["independent", "stratified", "antithetic"] = "independent"
    eps: float = 1e-3
    random_length_prob: float = 0.01
    shifted: bool = False
    opening_steps: int = 0
    lora_rank: int = 0
    tensorboard: bool = False
    wandb: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._name_objectives()
        require = requirement(self)
        for name in ("vocab_size", "width", "layers", "heads", "length"):
            require(name, getattr(self, name) > 0, "give a number above 0")
        fits = self.init is not None or self.width % self.heads == 0
        require("width", fits, f"give a multiple of heads, which is {self.heads}")
        require("block_length", self.block_length is None or self.block_length > 0, "give a number above 0")
        require("eps", 0 < self.eps <= 1, "give a number above 0 and at most 1, such as 0.001")
        require("random_length_prob", 0 <= self.random_length_prob <= 1, "give a share of the steps, from 0 to 1")
        require("lora_rank", self.lora_rank >= 0, "give 0 or a number above")
        require("lora_rank", not self.lora_rank or self.init is not None, "an adapter needs init, what it adapts")
        whole = not self.fsdp and self.tensor_parallel == 1
        require("lora_rank", not self.lora_rank or whole, "adapters are of a whole network: no fsdp or tensor_parallel")
        scales = self.rope_scaling is None or self.init is not None
        require("rope_scaling", scales, "without init, a network is made for this length, so leave it out")
        counted = self.epochs is None or not self.streaming
        require("epochs", counted, "streamed data are not counted before they are learnt, so give steps instead")
        if self.shares and self.objective != MIXTURE:
            of = "no objective" if self.objective is None else f"the objective {self.objective!r}"
            raise UserError(f"shares is {self.shares} for {of}: choose mixture.")
        if self.mixture_by is not None and self.objective != MIXTURE:
            raise UserError(f"mixture_by is {self.mixture_by!r} without a mixture: leave it out, or choose mixture.")
        if self.objective is None and self.init is None:
            object.__setattr__(self, "objective", "autoregressive")
        defaults = {item.name: item.default for item in fields(self)}
        for name in NEEDS:
            owners = objectives_with(name)
            unknown = self.objective is None  # until the network has been read
            if getattr(self, name) != defaults[name] and not unknown and not owners & {self.objective, *self.parts}:
                raise UserError(
                    f"{name} is {getattr(self, name)!r} for the objective {self.objective!r}, which does not have it: "
                    f"leave it out, or choose {' or '.join(sorted(owners))}."
                )
        for name in FROM_SCRATCH:
            if self.init is not None and getattr(self, name) != defaults[name]:
                raise UserError(
                    f"{name} is {getattr(self, name)} beside init, which decides it: leave out one of them."
                )
        for name in ("width", "layers", "heads"):
            alone = self.shape is None or getattr(self, name) == defaults[name]
            require(name, alone, f"shape says the same, so leave out {name} or shape")
        looks = not self.evaluate_every or self.validation is not None
        require("evaluate_every", looks, "give validation data to look at, or leave it out")
        if self.objective == MIXTURE and len(self.parts) < 2:
            raise UserError(f"shares is {self.shares}: give a mixture two objectives, such as autoregressive=0.5.")

    def _name_objectives(self) -> None:
        """Put the objectives' own names for others that they have; a number in one is the length of blocks."""
        shares, lengths = [], set()
        for text in self.shares:
            words, equals, share = text.partition("=")
            if not _is_share(share):
                raise UserError(f"shares has {text!r}: give objective=number, such as {objectives()[0]}=0.5.")
            name, length = objective_named(words, "shares")
            if name == MIXTURE:
                raise UserError(f"shares has {text!r}, a mixture within a mixture: name what it is made of.")
            shares.append(f"{name}{equals}{share}")
            lengths.add(length)
        if self.objective is not None:
            name, length = objective_named(self.objective)
            object.__setattr__(self, "objective", name)
            lengths.add(length)
        object.__setattr__(self, "shares", shares)
        for length in lengths - {None, self.block_length}:
            if self.block_length is not None:
                raise UserError(f"block_length is {self.block_length} beside blocks:{length}: leave out one of them.")
            object.__setattr__(self, "block_length", length)

    def completed(self, *, tuning: bool) -> Run:
        """Complete the settings by the learning rate of what is trained, unless they name one.

        Args:
            tuning: train on the answers of prompts and dialogues, not on whole texts.

        Raises:
            UserError: there is no network to tune, or a setting is of whole texts.
        """
        if tuning and self.init is None:
            raise UserError("init is not given, the network to fine-tune: give one, or train one with pretrain first.")
        if tuning and self.random_length_prob != Run.random_length_prob:
            given = f"random_length_prob is {self.random_length_prob}, but answers are not cropped"
            raise UserError(f"{given}: leave it out, or give whole texts to pretrain.")
        if self.learning_rate is not None:
            return self
        kind = "adapters" if self.lora_rank else "sft" if tuning else "from scratch" if self.init is None else "init"
        return dataclasses.replace(self, learning_rate=LEARNING_RATES[kind])

    @property
    def parts(self) -> dict[str, float]:
        """Of a mixture, each objective and its share."""
        named = (text.partition("=") for text in self.shares)
        return {name: float(share) for name, _, share in named}


FROM_SCRATCH = ("vocab_size", "width", "layers", "heads", "shape")
"""Fields that describe a network that is made, so that none is read."""

NEEDS: dict[str, Callable[[ModeKind], bool]] = {
    **dict.fromkeys(("order_schedule", "predicted"), lambda kind: kind.query_rows),
    "block_length": lambda kind: kind.blocks,
    "mask_token": lambda kind: kind.mask_token,
    **dict.fromkeys(("times", "eps"), lambda kind: kind.diffuses),
    **dict.fromkeys(("random_length_prob", "shifted", "opening_steps"), lambda kind: kind.diffuses and not kind.blocks),
}
"""Fields that only objectives of some modes have, and of which."""


def objectives_with(field: str) -> set[str]:
    """The objectives that have one of the fields in `NEEDS`."""
    return {kind.objective for kind in KINDS.values() if NEEDS[field](kind)}


def _is_share(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and float(text) > 0
    except ValueError:
        return False
