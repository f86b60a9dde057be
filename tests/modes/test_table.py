"""The table of modes: every mode has an entry, and one from outside writes, learns and scores as those inside do."""

from __future__ import annotations

import dataclasses
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import anyorder
from anyorder.checkpoints import load_model, save_model
from anyorder.cli import main as cli
from anyorder.decoding.diffusion.sampler import DiffusionSampler
from anyorder.decoding.sampling import Sampling
from anyorder.decoding.trace import collect
from anyorder.errors import UserError
from anyorder.huggingface import AnyOrderConfig, LLaDAForMaskedLM
from anyorder.likelihood.diffusion import MonteCarlo, diffusion_log_prob
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, KINDS, LEFT_TO_RIGHT, Mode, blocks, diffusion
from anyorder.modes import ENTRIES, LearningOptions, ModeEntry, ModeKind, Options, entry_of, register, resolve
from anyorder.modes.diffusion import BlocksMode, DiffusionMode
from anyorder.objectives import Batch, summed_loss
from anyorder.orders.names import objective_named, read_order
from anyorder.training import Training, fit
from anyorder.training.build import with_mask, with_own_mode
from anyorder.training.settings import Run
from tests.model.networks import network
from tests.modes.table import own_modes
from tests.pages import blocks_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_mode.py"
MASK = 3
ALL = (LEFT_TO_RIGHT, ANY_ORDER, diffusion(MASK), blocks(MASK, 4))
TEXTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [7, 6, 5, 9]]


@pytest.fixture
def example() -> Iterator[dict[str, Any]]:
    """The names of the example, whose mode is registered for the test."""
    names = runpy.run_path(str(EXAMPLE))
    with own_modes():
        register(names["BothEndsMode"]())
        yield names


@pytest.fixture
def both_ends(example: dict[str, Any]) -> Llama:
    return network(modes=(Mode(name="both-ends", shifted=False, mask_token_id=MASK, block_length=2),))


def test_every_mode_has_an_entry_and_says_what_it_takes() -> None:
    assert list(ENTRIES) == list(KINDS)
    assert all(entry.kind is KINDS[name] for name, entry in ENTRIES.items())
    assert all(ENTRIES[name].bound is kind.diffuses for name, kind in KINDS.items())
    for name, kind in KINDS.items():
        mode = Mode(name=name, shifted=kind.causal, mask_token_id=MASK if kind.mask_token else None, block_length=4)
        objective = entry_of(mode).objective(mode, LearningOptions())
        assert [taught.kind for taught in objective.modes] == [kind]
        config = network(modes=(mode,)).config
        assert all(resolve(order, config)[0] == mode for order in entry_of(mode).usual_orders(8).values())


def test_a_mode_from_outside_is_known_by_its_names_wherever_one_is_given(both_ends: Llama, tmp_path: Path) -> None:
    assert (read_order("both-ends:8"), read_order("Both_Ends_Filling").mode) == (("both-ends", 8), "both-ends")
    assert objective_named("both-ends:4") == ("both-ends-filling", 4)
    assert resolve(None, both_ends.config) == (both_ends.config.modes[0], "both-ends")
    save_model(both_ends, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert again.config.modes == both_ends.config.modes
    ids_BL = torch.tensor(TEXTS[:1])
    assert torch.equal(again(ids_BL).logits, both_ends(ids_BL).logits)


def test_it_writes_from_both_ends_whatever_stands_beside_it(both_ends: Llama) -> None:
    prompts = [[5, *[-1] * 7, 6], [8, 9]]
    out = anyorder.generate(both_ends, None, prompts, max_new_tokens=5, temperature=1.0, seed=1)
    turns = [
        [event.position for event in out.trace.events if (event.sample_id, event.step) == (0, step)]
        for step in range(4)
    ]
    assert turns == [[1, 2], [7], [3, 4], [5, 6]]
    assert [ids[: len(prompt)] for ids, prompt in zip(out.sequences[1:], prompts[1:], strict=True)] == prompts[1:]
    for row, prompt in enumerate(prompts):
        steps = entry_of("both-ends").decoder(
            both_ends, both_ends.config.modes[0], "both-ends",
            Options(sampling=Sampling(temperature=1.0, seed=1)),
        )(
            [[*prompt, *[-1] * (0 if -1 in prompt else 5)]], [row], None
        )  # fmt: skip
        assert collect(steps, [prompt], [row], ()).sequences == [out.sequences[row]]


def test_what_it_writes_has_the_probability_that_it_gives_the_text(both_ends: Llama) -> None:
    """Each pass of the decoder scores its block as the single pass of the likelihood does, and as training does."""
    canvas = [5, *[-1] * 7, 6]
    out = anyorder.generate(both_ends, None, canvas, temperature=1.0, seed=3)
    scored = list(range(1, 8))
    entry, [mode] = entry_of("both-ends"), both_ends.config.modes
    alone, other = (entry.log_probs(both_ends, mode, texts, marks)[0] for texts, marks in (
        (out.sequences, [scored]), ([*out.sequences, TEXTS[1]], [scored, [2]]),
    ))  # fmt: skip
    assert alone.log_prob == pytest.approx(sum(event.log_prob for event in out.trace.events), abs=1e-4)
    assert other.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
    inputs = entry.objective(mode, LearningOptions()).inputs(Batch.of(out.sequences, [1]), 0)
    assert inputs.count == 8
    whole = entry.log_probs(both_ends, mode, out.sequences, [range(1, 9)])[0]
    assert summed_loss(both_ends, inputs).item() == pytest.approx(-whole.log_prob, abs=1e-4)


def test_it_learns(both_ends: Llama) -> None:
    entry, [mode] = entry_of("both-ends"), both_ends.config.modes
    before = entry.log_probs(both_ends, mode, TEXTS[:1], [range(2, 9)])[0].log_prob
    fit(both_ends, "both-ends", [{"input_ids": TEXTS[0]}], Training(steps=8, batch_size=1, learning_rate=1e-2))
    assert entry.log_probs(both_ends, mode, TEXTS[:1], [range(2, 9)])[0].log_prob > before + 1


def test_the_command_line_and_comparisons_take_it(
    both_ends: Llama, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from anyorder.evaluation.order_search import by_likelihood
    from anyorder.evaluation.texts import orders_by_name
    from anyorder.inspection.compare import compare_sampling_methods

    assert orders_by_name([], both_ends.config) == {"both-ends": "both-ends"}
    [found] = by_likelihood(both_ends, TEXTS, {"both-ends:3": "both-ends:3"})
    assert not found.bound
    [compared] = compare_sampling_methods(both_ends, [[5, 6]], max_new_tokens=4)
    assert (compared.name, compared.passes, compared.scored) == ("both-ends", 2, 4)
    (tmp_path / "p.jsonl").write_text('{"prompt_token_ids": [5, 6]}\n')
    save_model(both_ends, tmp_path / "saved")
    words = ["generate", str(tmp_path / "saved"), "--prompts_file", str(tmp_path / "p.jsonl"), "--order", "both-ends:1"]
    assert cli([*words, "--max_new_tokens", "3"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.split()) == 3
    assert "3 forward passes" in captured.err


class Plain(ModeEntry):
    decoder = log_probs = objective = lambda *_, **__: None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("random", "x"), "the mode has the name 'random', which means something else already: give another one"),
        (("x", "mixture"), "the mode has the name 'mixture', which means something else already"),
        (("x", "diffusion"), "the mode has the name 'diffusion', which means something else already"),
        (("A B", "x"), "the mode has the name 'A B': give one of lower-case letters and hyphens"),
        (("a:b", "x"), "the mode has the name 'a:b': give one of lower-case letters and hyphens"),
    ],
)
def test_names_that_a_mode_cannot_have(names: tuple[str, str], message: str) -> None:
    entry = type(
        "Named", (Plain,), {"kind": ModeKind(name=names[0], objective=names[1], visibility=KINDS["blocks"].visibility)}
    )
    with own_modes(), pytest.raises(UserError, match=message):
        register(entry())
    assert list(ENTRIES) == list(KINDS) == ["left-to-right", "any-order", "diffusion", "blocks"]


def test_what_a_mode_does_not_take(both_ends: Llama) -> None:
    for options, message in (
        ({"num_beams": 2}, "num_beams is 2, but beams are written from left to right: leave it out."),
        ({"num_samples": 2}, "num_samples is 2 at temperature 0, where all samples are the same"),
        ({"order": "left-to-right"}, "has no logits for the next token"),
        ({"order": "any-order"}, "this network writes by 'both-ends', not by 'any-order'"),
    ):
        with pytest.raises(UserError, match=message):
            anyorder.generate(both_ends, None, [5, 6], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the mode 'both-ends' does not keep phrasings apart: give another order"):
        anyorder.fuse(both_ends, None, [[5, 6], [7]])


@pytest.mark.parametrize("kept", [DiffusionMode, BlocksMode])
def test_a_variant_of_diffusion_writes_learns_and_scores_by_its_own_name(
    kept: type[DiffusionMode], tmp_path: Path
) -> None:
    """All that diffusion takes works for a registered subclass of it, whose network has no other mode."""
    kind = dataclasses.replace(kept.kind, name="my-diffusion", objective="my-masked-diffusion", other_names=())
    entry = type("Mine", (kept,), {"kind": kind})()
    with own_modes():
        register(entry)
        mode = Mode(
            name="my-diffusion", shifted=not kind.blocks, mask_token_id=MASK, block_length=4 * kind.blocks or None
        )
        plain = dataclasses.replace(mode, name=kept.kind.name)
        mine, model = network(modes=(mode,)), network(modes=(plain,))
        mine.load_state_dict(model.state_dict())
        sampler = DiffusionSampler(steps=4, temperature=1.0)
        for mine_order, order in (
            (None, None), ("my-diffusion", plain.name), (sampler.replace(mode="my-diffusion"), sampler),
        ):  # fmt: skip
            written, expected = (
                anyorder.generate(net, None, [5, 6], order=by, max_new_tokens=6)
                for net, by in ((mine, mine_order), (model, order))
            )
            assert written.token_ids == expected.token_ids

        scored, method = [range(2, 9), [2]], MonteCarlo(samples=32)
        mine_bounds, bounds = (diffusion_log_prob(net, TEXTS, scored, method=method) for net in (mine, model))
        assert mine_bounds == bounds
        for tuning in (False, True):
            options = LearningOptions(tuning=tuning, end_token_id=2)
            objectives = [entry_of(of).objective(of, options) for of in (mode, plain)]
            assert objectives[0].modes == (mode,)
            losses = [
                summed_loss(net, objective.inputs(Batch.of(TEXTS), 0)).item()
                for net, objective in zip((mine, model), objectives, strict=True)
            ]
            assert losses[0] == losses[1]
        fit(mine, "my-diffusion", [{"input_ids": TEXTS[0]}], Training(steps=1, batch_size=1))
        assert mine.config.modes == (mode,)

        run = Run(data=tmp_path, output=tmp_path, init="n").completed(tuning=True)
        completed = with_own_mode(run, mine.config)
        assert (completed.objective, completed.shifted) == ("my-masked-diffusion", mode.shifted)
        if not kind.blocks:
            bare = Llama(mine.config.replace(eos_token_ids=()))
            with pytest.raises(UserError, match="the network has no end token"):
                with_mask(completed, bare, None, tuning=True)  # type: ignore[arg-type]
            face = LLaDAForMaskedLM(AnyOrderConfig(backbone=mine.config))
            assert face(torch.tensor(TEXTS[:1])).logits.shape == (1, 9, mine.config.vocab_size)


def test_the_guide_shows_the_example() -> None:
    guide = (EXAMPLE.parents[1] / "docs" / "write-your-own-mode.md").read_text(encoding="utf-8")
    example = EXAMPLE.read_text(encoding="utf-8")
    assert len(example.splitlines()) < 150
    _, *parts, _, _ = [block.code for block in blocks_of(guide)]
    assert len(parts) == 5
    assert all(part in example for part in parts)


@pytest.mark.parametrize("order", ["left-to-right", "random", "diffusion", "blocks"])
def test_few_functions_lie_between_generate_and_the_network(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/architecture.md lists for one prompt can be read in one sitting."""
    source, stacks, prepare = Path(anyorder.__file__).parent, [], Llama.prepare

    def watched(*arguments: Any, **options: Any) -> Any:
        frames = [Path(frame.filename) for frame in traceback.extract_stack()]
        stacks.append([file.relative_to(source).parts[0] for file in frames if file.is_relative_to(source)])
        return prepare(*arguments, **options)

    monkeypatch.setattr(Llama, "prepare", watched)
    anyorder.generate(network(modes=ALL), None, [5, 6], order=order, max_new_tokens=4)
    for stack in stacks:
        rooms = [room for room in stack if room != "utils"]  # of which a decorator checks arguments
        assert len(rooms) <= 8
        assert set(rooms) == {"api", "decoding"}
