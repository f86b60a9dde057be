"""The flash backend, with a stand-in for its package that does the same in plain PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anyorder.attention import BACKENDS, BiasTerm, Request, attend, compile_mask, resolve_backend
from anyorder.attention.flash import FLASH
from anyorder.errors import UserError
from anyorder.visibility import Visibility, before, bidirectional, causal, documents, groups, key_is, sliding_window
from tests.attention.fakes import Largest, install_flash
from tests.attention.reference import HEADS, projections

PLAIN: list[Visibility] = [
    causal(),
    bidirectional(),
    causal() & sliding_window(3),
    documents(),
    causal() & documents(),
]


@pytest.fixture(autouse=True)
def _flash(monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash(monkeypatch)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("visibility", PLAIN, ids=str)
@given(batch=st.integers(1, 3), rows=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_reference(visibility: Visibility, kind: str, batch: int, rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    labels = {"position": torch.arange(rows).expand(batch, -1), "document": torch.randint(2, (batch, rows)).cumsum(1)}
    request = Request(visibility, labels, labels)
    inputs = projections(batch, rows, rows, kind)
    ours, expected = (attend(*inputs, compile_mask(request, name)) for name in ("flash", "eager"))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(ours)
    grads = [torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_padded_prefill_and_even_decoding() -> None:
    valid = torch.tensor([[True] * 5, [True, True, True, False, False]])
    rows = {"position": torch.arange(5).expand(2, -1)}
    inputs = projections(2, 5, 5, "GQA")
    request = Request(causal(), rows, rows, valid, valid)
    ours, expected = (attend(*inputs, compile_mask(request, name)) for name in ("flash", "eager"))
    torch.testing.assert_close(ours[valid], expected[valid])

    step = Request(causal(), {"position": torch.tensor([[4], [4]])}, rows)
    inputs = projections(2, 1, 5, "GQA")
    torch.testing.assert_close(*(attend(*inputs, compile_mask(step, name)) for name in ("flash", "eager")))


@pytest.mark.parametrize("visibility", [groups(), before("rank"), causal() & before("rank")], ids=str)
def test_what_has_no_plain_kernel_is_refused(visibility: Visibility) -> None:
    labels = {name: torch.tensor([[0, 0, 1, 1]]) for name in ("position", "rank", "stream")}
    with pytest.raises(UserError) as error:
        compile_mask(Request(visibility, labels, labels), "flash")
    message = str(error.value)
    assert message.startswith("attention 'flash' shows everything, causal, windows or packed documents, not ")
    assert "key.rank < query.rank" in message
    assert message.endswith(": choose 'sdpa' or 'flex'.")


def test_a_bias_is_refused() -> None:
    labels = {"position": torch.arange(4).unsqueeze(0)}
    with pytest.raises(UserError) as error:
        compile_mask(Request(causal(), labels, labels, bias=(BiasTerm(key_is("position", 0), 1.0),)), "flash")
    assert str(error.value) == "attention 'flash' cannot add a bias to the scores: choose 'sdpa' or 'flex'."


def test_other_data_types_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "flash", replace(FLASH, devices=("cpu",), backward=("cpu",)))
    with pytest.raises(UserError) as error:
        resolve_backend("flash", "cpu", torch.float32)
    assert str(error.value) == (
        "attention 'flash' takes torch.float16 or torch.bfloat16, not torch.float32: "
        "convert the model, or choose 'sdpa' or 'auto'."
    )
    assert resolve_backend("flash_attention_2", "cpu", torch.bfloat16).name == "flash"


@pytest.mark.parametrize(
    ("backend", "visibility"),
    [*(("flash", visibility) for visibility in PLAIN), ("sdpa", causal()), ("sdpa", bidirectional())],
    ids=str,
)
def test_no_tensor_of_rows_by_keys(backend: str, visibility: Visibility) -> None:
    length = 2048
    position = torch.arange(length).expand(2, -1)
    labels = {"position": position, "document": position // 300}
    with Largest() as largest:
        compile_mask(Request(visibility, labels, labels), backend)
    assert largest.elements <= 4 * 2 * length
