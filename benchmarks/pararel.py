"""Which way of answering questions in several phrasings is right most often, on a network that knows some phrasings.

    python benchmarks/pararel.py ../shared/data/pararel --output pararel

A small network learns facts of PARAREL in three patterns of their relation each; a quarter of its texts say a fact in
several of them, one after another. Then it is asked for the same facts in five patterns that it has never seen, one at
a time and all together, in every way there is. Prints a table. The network, the questions, all answers, the numbers and
a picture are in the folder, and what is there is not done again. Times are those of the processor, so that other work
on the machine does not count; they are taken apart from the answers, all ways in turn. About four minutes of one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import anyorder
from anyorder.cli._progress import TrainingProgress
from anyorder.data import pack, train_tokenizer
from anyorder.evaluation.comparison import BEST, COMPARED, MEAN, compare
from anyorder.evaluation.comparison_plot import draw
from anyorder.evaluation.prompts import prompt_parts
from anyorder.evaluation.protocol import SINGLE, asker
from anyorder.evaluation.question_runs import read_results
from anyorder.evaluation.question_sets import pararel_patterns, read_pararel
from anyorder.evaluation.questions import Question, read_jsonl, to_json
from anyorder.evaluation.scoring import exact_match
from anyorder.inspection.speed import machine
from anyorder.model.config import ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.rope import Rotary
from anyorder.training import train_causal

TAUGHT, ASKED = 3, 5
"""Patterns of each relation that the network learns, and is asked in."""

COUNTS = (1, 3, 5)
LENGTH, BATCH = 128, 16
ROUNDS = 5
PARTS = prompt_parts("opening", instruction="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, asks, prints and draws."""
    options = _options(arguments)
    folder: Path = options.output
    console = Console(stderr=True, highlight=False)
    if not (folder / "training.json").is_file():
        train(options, folder, console)
    model, tokenizer = anyorder.load(folder / "network", device="cpu")
    assert tokenizer is not None
    questions = read_jsonl(folder / "questions.jsonl").questions
    with console.status("asking") as status:
        comparison = compare(
            model, tokenizer, questions, PARTS, {"seed": options.seed}, folder / "answers",
            counts=COUNTS, batch_size=options.batch_size, seed=0,
            on_progress=lambda name, done, total: status.update(f"{name}: {done}/{total}"),
        )  # fmt: skip
    with console.status("taking times"):
        seconds = times(model, tokenizer, list(questions[: options.batch_size]))
    lines = tuple(replace(line, seconds=seconds[line.name, line.phrasings]) for line in comparison.lines)
    comparison = replace(comparison, lines=lines)
    record = json.loads((folder / "training.json").read_text())
    record |= {"machine": machine(), **comparison.to_json()}
    print(
        f"{len(questions)} facts; {record['steps']} steps, final loss {record['loss']:.2f}\n\n{comparison.markdown()}\n"
    )
    for count, same in comparison.agreement.items():
        print(f"two of {count} phrasings agree: {same} %")
    print(f"\n{gaps(tokenizer, folder / 'answers')}")
    for target in {folder / "comparison.json", options.results or folder / "comparison.json"}:
        target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(comparison, options.picture or folder / "comparison.png")


def train(options: argparse.Namespace, folder: Path, console: Console) -> None:
    """A network that knows the facts in the patterns that are taught, and the questions in the others."""
    taught, asked = lessons(options.data, options.facts, options.seed)
    some = itertools.islice(epochs(taught, 0, options.seed), 3)
    tokenizer = train_tokenizer(itertools.chain.from_iterable(some), 2000)
    rows_NL = rows(tokenizer, epochs(taught, options.together, options.seed), options.steps * BATCH)
    torch.manual_seed(options.seed)
    model = Llama(
        ModelConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=512,
            rotary=Rotary(theta=10_000.0),
            tie_word_embeddings=True,
            eos_token_ids=(tokenizer.eos_token_id,),
        )
    )
    with TrainingProgress(console) as progress:
        loss = train_causal(
            model, rows_NL, steps=options.steps, batch_size=BATCH, learning_rate=4e-3, seed=options.seed,
            callbacks=[progress],
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    anyorder.save(model, tokenizer, folder / "network")
    (folder / "questions.jsonl").write_text("".join(to_json(question) + "\n" for question in asked), encoding="utf-8")
    record = {"facts": len(taught), "together": options.together, "steps": options.steps, "loss": loss}
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")


def lessons(data: Path, facts: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Facts of every relation with patterns enough, in the patterns that are taught, and in others."""
    draws = random.Random(seed)
    taught, asked = [], []
    for file in sorted((data / "graphs_json").glob("*.jsonl")):
        patterns = len(pararel_patterns(data, file.stem, "opening"))
        if patterns < TAUGHT + ASKED:
            continue
        order = draws.sample(range(patterns), TAUGHT + ASKED)
        for question in read_pararel(data, relations=[file.stem]).sample(facts, seed).questions:
            taught.append(question.pick(indices=order[:TAUGHT]))
            asked.append(question.pick(indices=order[TAUGHT:]))
    return taught, asked


def epochs(taught: list[Question], together: float, seed: int) -> Iterator[list[str]]:
    """Every fact once, in one of its patterns or in some one after another, in an order of its own each time."""
    draws = random.Random(seed)
    while True:
        texts = []
        for question in taught:
            several = draws.random() < together
            phrasings = draws.choices(question.phrasings, k=draws.randint(2, ASKED) if several else 1)
            texts.append("".join(map(PARTS.segment, phrasings)) + f"{PARTS.suffix} {question.answers[0]}\n")
        draws.shuffle(texts)
        yield texts


def rows(tokenizer: PreTrainedTokenizerBase, texts: Iterator[list[str]], count: int) -> Tensor:
    """So many rows of `LENGTH` tokens to learn from."""
    documents: list[list[int]] = []
    while sum(map(len, documents)) < count * LENGTH:
        documents += tokenizer(next(texts))["input_ids"]
    return pack(documents, LENGTH, tokenizer.eos_token_id)[:count]


def times(model: Llama, tokenizer: PreTrainedTokenizerBase, questions: list[Question]) -> dict[tuple[str, int], float]:
    """Seconds per question of every way with each number of phrasings: medians of rounds in which all take turns."""
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for method, count in itertools.product(COMPARED, COUNTS):
            # How long one of several phrasings takes does not depend on their number.
            picked = [question.pick(1 if method.name == SINGLE else count) for question in questions]
            segments = [list(map(PARTS.segment, question.phrasings)) for question in picked]
            ask = asker(model, tokenizer, PARTS, method)
            started = time.process_time()
            ask(segments)
            taken.setdefault((method.label, count), []).append((time.process_time() - started) / len(questions))
    found = {key: statistics.median(seconds) for key, seconds in taken.items()}
    for count in COUNTS:
        found[MEAN, count] = found[SINGLE, count]
        found[BEST, count] = found[SINGLE, count] * count
    return found


def gaps(tokenizer: PreTrainedTokenizerBase, answers: Path) -> str:
    """Right answers by how much shorter than the longest the phrasings of a question are, in tokens and on average."""
    lines = [
        "| tokens missing to the longest phrasing | questions | shared, 1/N, % | right, 1/N, % |",
        "|---|---|---|---|",
    ]
    shared, right = (
        read_results(answers / f"attention-{positions}-1N-{ASKED}.feather").rows for positions in ("shared", "right")
    )
    groups: dict[str, list[tuple[bool, bool]]] = {"below 1.5": [], "1.5 to 3": [], "3 and more": []}
    for one, other in zip(shared, right, strict=True):
        lengths = [len(ids) for ids in tokenizer(list(map(PARTS.segment, one["paraphrases"])))["input_ids"]]
        gap = max(lengths) - statistics.mean(lengths)
        name = list(groups)[(gap >= 1.5) + (gap >= 3)]
        groups[name].append(
            (exact_match(one["answers"], one["prediction"]), exact_match(other["answers"], other["prediction"]))
        )
    for name, found in groups.items():
        shares = (f"{100 * sum(hits) / len(found):.1f}" for hits in zip(*found, strict=True))
        lines.append(f"| {name} | {len(found)} | {' | '.join(shares)} |")
    return "\n".join(lines)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of PARAREL, with graphs_json and trex_lms_vocab")
    parser.add_argument("--output", type=Path, default=Path("pararel"), help="folder for everything")
    parser.add_argument("--results", type=Path, help="another place for the numbers")
    parser.add_argument("--picture", type=Path, help="another place for the picture")
    parser.add_argument("--facts", type=int, default=100, help="of each relation")
    parser.add_argument(
        "--together", type=float, default=0.25, help="share of the texts to learn from that have several phrasings"
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
