"""Options that several commands share, or that belong together: a dataclass for each group.

A command that has one of them for a parameter takes its fields as options of their own (`anyorder.cli._signature`).
Nothing heavy is imported before a method of these is called.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anyorder.cli._processes import number_of_processes
from anyorder.errors import UserError
from anyorder.utils.annotations import check_fields

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from anyorder.cli._console import PlainConsole
    from anyorder.model.llama import Llama
    from anyorder.parallel import Processes


@dataclass(frozen=True, kw_only=True)
class OptionGroup:
    """A group of options.

    Raises:
        UserError: a value is of another kind than its option.
    """

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(OptionGroup):
    """How a checkpoint is read.

    Attributes:
        tokenizer: Folder, file or hub id of the tokenizer, if it is not with the model.
        dtype: Of the weights: auto (as stored), float32, bfloat16, float16, float64, or int8 (those of the
            projections rounded to 8 bits).
        device: Such as cpu or cuda; auto takes a GPU where there is one.
        revision: Branch, tag or commit of a model on the hub.
    """

    tokenizer: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    revision: str | None = None

    def load(
        self, model: str, console: PlainConsole, processes: Processes | None = None
    ) -> tuple[Llama, PreTrainedTokenizerBase | None]:
        """Read a model and its tokenizer, split over processes if there are any; say so on the console meanwhile.

        Raises:
            UserError: see `anyorder.load`.
        """
        import anyorder

        with console.status(f"reading {model}"):
            return anyorder.load(model, **dataclasses.asdict(self), processes=processes)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(CheckpointOptions):
    """How a checkpoint is read, and attention computed.

    Attributes:
        attention: auto, eager, sdpa, flex or flash.
    """

    attention: str = "auto"


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(OptionGroup):
    """What several processes that torchrun started do together.

    Attributes:
        tensor_parallel: Processes that one network is split over, as torchrun starts them; groups of so many share out
            what is written. 1 splits no network.
    """

    tensor_parallel: int | None = None

    def begin(self, device: str) -> Processes | None:
        """Join the processes; return None where there is one alone.

        Raises:
            UserError: see `anyorder.parallel.begin`.
        """
        if number_of_processes() == 1 and self.tensor_parallel in (None, 1):
            return None
        from anyorder.parallel import begin

        return begin(self.tensor_parallel, device)

    def begin_as_one(self, device: str) -> Processes | None:
        """Join the processes, over all of which one network is split; return None where there is one alone.

        Raises:
            UserError: see `begin`; or there are several groups of processes.
        """
        number = number_of_processes()
        if number > 1 and self.tensor_parallel is None:
            raise UserError(
                f"{number} processes were started without tensor_parallel: give --tensor_parallel {number}, which "
                "splits the network over them."
            )
        processes = self.begin(device)
        if processes is not None and processes.groups > 1:
            raise UserError(
                f"tensor_parallel is {self.tensor_parallel}, but requests come to one network: give {number}, which "
                "splits it over all processes."
            )
        return processes


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(OptionGroup):
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the most probable token; above 0, tokens are drawn.
        top_k: Draw only from this many most probable tokens.
        top_p: Draw only from the fewest tokens whose probabilities add up to this.
        min_p: Draw only from tokens at least this many times as probable as the most probable one.
        repetition_penalty: Above 1, tokens that the prompt or the text has already become rarer.
        seed: Decides what is drawn, together with the number of the prompt.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DiffusionOptions(OptionGroup):
    """How diffusion samples; an option that is None was not given.

    Attributes:
        preset: Diffusion as published: llada, llada-semi-ar, dream-maskgit, dream-margin, dream-entropy, fast-dllm,
            sdar, llada2, llada2.1 or nemotron.
        sampling_method: Diffusion in LLaDA's words: all at once, block by block on a canvas that grows until the end
            token, or block by block on the whole canvas.
        remasking_strategy: What diffusion writes first: low_confidence, random, topk_margin or entropy.
        steps: Steps of diffusion for the whole text, one a token unless given.
        block_length: Tokens of a block, where diffusion writes block by block.
        cfg_scale: Classifier-free guidance of diffusion, none unless given.
        cache: Keys that diffusion keeps within a block; prefix and dual are fast and approximate.
        threshold: Diffusion writes all tokens that are surer than this, instead of so many a step.
        factor: Diffusion writes the n-th surest token if it is as sure as 1 - factor / (n + 1).
    """

    preset: str | None = None
    sampling_method: Literal["fixed_length", "semi_ar_origin", "semi_ar_padding"] | None = None
    remasking_strategy: str | None = None
    steps: int | None = None
    block_length: int | None = None
    cfg_scale: float | None = None
    cache: Literal["none", "prefix", "dual"] | None = None
    threshold: float | None = None
    factor: float | None = None

    @property
    def given(self) -> list[str]:
        """The names of the options that were given."""
        return [name for name, value in dataclasses.asdict(self).items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class WritingOptions(OptionGroup):
    """What is written, and how much at a time.

    Attributes:
        order: Mode, such as left-to-right, any-order, random, groups:4, confidence, diffusion or blocks:32; that of the
            model unless given, or one that fills gaps.
        max_new_tokens: Tokens to write per text at most.
        gap_tokens: Tokens of each gap, [...] in the prompt; of several lengths, such as 2,4,8, the most probable one
            is taken.
        draft: Groups that a pass predicts in any order, the later ones as drafts: fewer passes, the same
            distribution.
        stop: Text that ends the writing; may be repeated.
        num_samples: Texts to draw per prompt, one unless given.
        num_beams: Above 1, beam search with so many beams.
        batch_size: Texts to write at a time; changes speed and memory, not what is written.
        compile: Whether passes are compiled, which takes time at first use; auto takes what is compiled already, and
            compiles where that pays.
    """

    order: str | None = None
    max_new_tokens: int = 64
    gap_tokens: list[int] = field(default_factory=list)
    draft: int | None = None
    stop: list[str] = field(default_factory=list)
    num_samples: int | None = None
    num_beams: int = 1
    batch_size: int = 16
    compile: Literal["auto", "always", "never"] = "auto"


@dataclass(frozen=True, kw_only=True)
class PromptOptions(OptionGroup):
    """What is continued, and what is around it.

    Attributes:
        prompts_file: File with one prompt in each line; in a .jsonl file, a JSON string or an object with prompt, text,
            messages or prompt_token_ids in each. "-" is standard input.
        interactive: Continue one prompt after another, each a line that is typed; Ctrl-D ends.
        chat: Take each prompt for the message of a user, which the chat template writes; the answer is printed.
        system: System message before it; implies chat.
        image: Image file that the prompt is about, for a model with vision; once for each <|image|> of the prompt, or
            as often as wanted for one without. Each of several prompts has all of them.
    """

    prompts_file: Path | None = None
    interactive: bool = False
    chat: bool = False
    system: str | None = None
    image: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class OutputOptions(OptionGroup):
    """How texts are printed, and what is kept of them.

    Attributes:
        stream: Print the text while it is written, as a terminal always shows a single text.
        show: Draw the text in the terminal while it fills, in whatever order; elsewhere it is printed at its end.
        delay: Seconds to wait after each step that --show draws, such as 0.2.
        json: Print one JSON object a line instead of text.
        output: New file for the texts of prompts_file, a JSON object a line. Interrupted, the same command resumes.
        trace: New file for what was written where and when, which `anyorder inspect replay` shows.
    """

    stream: bool = False
    show: bool = False
    delay: float = 0.0
    json: bool = False
    output: Path | None = None
    trace: Path | None = None
