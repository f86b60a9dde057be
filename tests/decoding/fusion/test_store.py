"""What is recalled is what would be read: bit for bit at the same place, and to rounding elsewhere."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import anyorder
from anyorder.decoding.fusion.layout import Question
from anyorder.decoding.fusion.method import METHODS, Fusion
from anyorder.decoding.fusion.reader import Prefiller
from anyorder.decoding.fusion.store import SegmentStore
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.rope import YarnRotary
from anyorder.utils.files import claimed
from tests.decoding.fusion.test_decoder import net, questions
from tests.decoding.fusion.writing import write_fused
from tests.model.networks import LAYERS

LOOP = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

YARN = YarnRotary(theta=100.0, factor=4.0, original_max_position_embeddings=16)


def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each pass from now on, padding included."""
    counts: list[int] = []
    hidden = Llama.hidden

    def watched(self: Llama, input_ids_BR: torch.Tensor, *others: Any) -> torch.Tensor:
        counts.append(input_ids_BR.numel())
        return hidden(self, input_ids_BR, *others)

    monkeypatch.setattr(Llama, "hidden", watched)
    return counts


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(
    asked=st.lists(questions, min_size=1, max_size=3),
    positions=st.sampled_from(["shared", "running", "right", "spread"]),
    half=st.booleans(),
)  # fmt: skip
def test_recalled_is_read(
    layers: str, asked: list[Question], positions: str, half: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """All of it, or what one of the questions has in common with the others; also turned to another place."""
    model = net(layers, rotary=YARN)
    store = SegmentStore(tmp_path_factory.mktemp("store"), model)
    layouts = [question.layout(positions) for question in asked]
    Prefiller(model, store).read_segments([question.layout("shared") for question in asked[: 1 if half else None]], 0)
    fresh, fresh_rows = Prefiller(model).read_segments(layouts, 0)
    recalled, recalled_rows = Prefiller(model, store).read_segments(layouts, 0)
    present = fresh.present
    assert torch.equal(present, recalled.present)
    for name, label in fresh.labels.items():
        assert torch.equal(label * present, recalled.labels[name] * present)
    for one, two in zip(fresh.layers, recalled.layers, strict=True):
        torch.testing.assert_close(one.keys[:, :-1][present], two.keys[:, :-1][present], rtol=0, atol=1e-12)
        torch.testing.assert_close(one.values[:, :-1][present], two.values[:, :-1][present], rtol=0, atol=1e-12)
    for mine, theirs in zip(fresh_rows, recalled_rows, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "contrast"])
def test_answers_are_the_same(tmp_path: Path, method: str) -> None:
    model = net()
    asked = [Question(segments=((1, 2), (3,)), prefix=(7, 8), suffix=(9,)), Question(segments=((3,), (4, 5)))]
    options: dict[str, Any] = {"fusion": Fusion(method=method), "max_new_tokens": 3}
    plain = write_fused(model, asked, **options)
    for _ in range(2):
        stored = write_fused(model, asked, store=SegmentStore(tmp_path, model), **options)
        assert stored.trace.events == plain.trace.events


def test_only_what_is_new_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    first = Question(segments=((1, 2), (3,)), prefix=(7, 8, 9), suffix=(4,))
    more = Question(segments=((3,), (5, 6, 7), (1, 2)), prefix=(7, 8, 9), suffix=(4,))
    store = SegmentStore(tmp_path, model)
    counts = rows_read(monkeypatch)
    write_fused(model, [first], max_new_tokens=1, store=store)
    assert counts == [3, 4, 1]
    assert len(list(tmp_path.iterdir())) == 3
    counts.clear()
    generation = write_fused(model, [first], max_new_tokens=1, store=store)
    assert counts == [1]
    assert generation.trace.passes == 1
    counts.clear()
    write_fused(model, [more], max_new_tokens=1, store=store)
    assert counts == [9, 1]  # a row for each of the three, two of them padding


def test_another_prefix_place_or_network_is_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    question = Question(segments=((1, 2), (3,)), prefix=(7, 8), suffix=(4,))
    store = SegmentStore(tmp_path, model)
    write_fused(model, [question], max_new_tokens=1, store=store)
    counts = rows_read(monkeypatch)
    other = Question(segments=((1, 2), (3,)), prefix=(7, 9), suffix=(4,))
    write_fused(model, [other], max_new_tokens=1, store=store)
    assert counts == [2, 4, 1]
    counts.clear()
    # The second phrasing stands elsewhere, where it is at another distance from the prefix that it looked at.
    write_fused(model, [question], fusion=Fusion(positions="running"), max_new_tokens=1, store=store)
    assert counts == [2, 1]
    counts.clear()
    changed = net()
    with torch.no_grad():
        changed.model.layers[1].get_parameter("mlp.up_proj.weight").add_(0.01)
    write_fused(changed, [question], max_new_tokens=1, store=SegmentStore(tmp_path, changed))
    assert counts == [2, 4, 1]


def test_without_a_prefix_a_phrasing_is_turned_to_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not where layers cut chunks at fixed places."""
    question = Question(segments=((1, 2), (3, 4, 5)), suffix=(4,))
    for layers, expected in (("plain", [1]), ("window", [1]), ("chunk", [6, 1])):
        model = net(layers)
        store = SegmentStore(tmp_path / layers, model)
        write_fused(model, [question], max_new_tokens=1, store=store)
        counts = rows_read(monkeypatch)
        running = Fusion(positions="running")
        stored = write_fused(model, [question], fusion=running, max_new_tokens=1, store=store)
        assert counts == expected
        plain = write_fused(model, [question], fusion=running, max_new_tokens=1)
        assert stored.written == plain.written
        assert stored.trace.events[0].log_prob == pytest.approx(plain.trace.events[0].log_prob, abs=1e-12)
        monkeypatch.undo()


def test_mistakes(tmp_path: Path) -> None:
    model = net()
    question = Question(segments=((1, 2),), suffix=(4,))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"store .*file' is a file: give a folder"):
        SegmentStore(tmp_path / "file", model)
    store = SegmentStore(tmp_path / "store", model)
    write_fused(model, [question], max_new_tokens=1, store=store)
    (file,) = (tmp_path / "store").iterdir()
    file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"safetensors' is damaged \(.*\): delete it, and its text is read again"):
        write_fused(model, [question], max_new_tokens=1, store=store)


def test_each_changed_byte_is_told_from_what_was_written(tmp_path: Path) -> None:
    model = net()
    question = Question(segments=((1, 2),), suffix=(4,))
    expected = write_fused(model, [question], max_new_tokens=1, store=SegmentStore(tmp_path, model))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    source, said = random.Random(0), set()
    for _ in range(100):
        at = source.randrange(8, len(content))
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << source.randrange(8)]) + content[at + 1 :])
        try:
            found = write_fused(model, [question], max_new_tokens=1, store=SegmentStore(tmp_path, model))
        except UserError as error:
            said.add(re.sub(r"'.*' is damaged \(.*\)", "damaged", str(error), flags=re.DOTALL))
        else:  # such as a blank of the header
            assert found.trace.events == expected.trace.events
    assert said == {"damaged: delete it, and its text is read again."}


def test_what_another_process_is_storing_is_not_stored_twice(tmp_path: Path) -> None:
    model = net()
    question = Question(segments=((1, 2),), suffix=(4,))
    expected = write_fused(model, [question], max_new_tokens=1, store=SegmentStore(tmp_path, model))
    (file,) = tmp_path.iterdir()
    file.unlink()
    with claimed(file):
        found = write_fused(model, [question], max_new_tokens=1, store=SegmentStore(tmp_path, model))
        assert not file.exists()
    assert found.written == expected.written


def test_from_text(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "stories260K"
    model, tokenizer = anyorder.load(folder / "stories260K.bin", tokenizer=folder / "tok512.bin", device="cpu")
    options: dict[str, Any] = {"prefix": "Once upon a time", "suffix": " She", "max_new_tokens": 5}
    phrasings = [" there was a girl.", " a girl lived here."]
    plain = anyorder.fuse(model, tokenizer, phrasings, **options)
    first = anyorder.fuse(model, tokenizer, phrasings, store=tmp_path, **options)
    second = anyorder.fuse(model, tokenizer, phrasings, store=str(tmp_path), **options)
    assert plain.text == first.text == second.text
    assert (first.passes, second.passes) == (7, 5)
    stream = anyorder.stream_fused(model, tokenizer, phrasings, store=tmp_path, **options)
    assert "".join(stream) == plain.text
    assert stream.output.passes == 5
