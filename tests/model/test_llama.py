"""One pass through the network, without a cache: every way of reading against a slow oracle.

Numbers are float64, so that a wrong mask cannot hide behind rounding.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyorder.errors import UserError
from anyorder.model.cache import LayerCache
from anyorder.model.config import LayerKind
from anyorder.model.llama import Llama
from anyorder.model.rope import DynamicRotary
from anyorder.model.self_attention import ATTENTIONS, SelfAttention
from anyorder.model.view import View
from anyorder.visibility import before, bidirectional, causal, groups, not_after, same, segments
from tests.model.networks import LAYERS, VOCABULARY, network, pad, random_ids
from tests.model.oracle import narrowed, oracle_logits

EXACT = {"rtol": 0.0, "atol": 1e-9}

pytestmark = pytest.mark.usefixtures("float64")

LOOP = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def two_stream(ranks: list[list[int]], predicted: list[list[int]], ids: list[list[int]]) -> tuple[Tensor, dict, Tensor]:
    """Rows `[content ; query rows]` of equally long samples: ids, labels, and which rows are no padding.

    Content rows stand in the order of their positions; query row n predicts position `predicted[b][n]`.
    """
    content, queries = torch.tensor(ids), pad(predicted)[0]
    position = torch.cat((torch.arange(content.shape[1]).expand_as(content), queries), 1)
    labels = {
        "position": position,
        "rank": torch.tensor(ranks).gather(1, position),
        "stream": torch.cat((torch.zeros_like(content), torch.ones_like(queries)), 1),
    }
    valid = torch.cat((torch.ones_like(content).bool(), pad(predicted)[1]), 1)
    return torch.cat((content, torch.full_like(queries, VOCABULARY - 1)), 1), labels, valid


def logits(model: Llama, visibility, ids: Tensor, labels: dict[str, Tensor], **options) -> Tensor:
    return model.logits(model.hidden(ids, model.prepare(visibility, labels, **options)))


# ---- left to right ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_left_to_right(layers: str, backend: str) -> None:
    model = network(layers, backend)
    (ids,) = random_ids(11)

    def sees(kind: LayerKind, query: int, key: int) -> bool:
        return key <= query and narrowed(kind, query, key)

    expected = oracle_logits(model, ids, range(11), sees, 11)
    torch.testing.assert_close(model(torch.tensor([ids])).logits[0], expected, **EXACT)


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_padding_changes_nothing(layers: str, lengths: list[int], seed: int) -> None:
    """Left, right and no padding give the same, whatever the padding's own tokens are."""
    model = network(layers, seed=seed)
    rows = random_ids(*lengths)
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
    for left in (False, True):
        for value in (0, 7):
            ids, valid = pad(rows, left, value)
            out = model(ids, attention_mask=valid.long()).logits
            assert bool(out.isfinite().all())
            torch.testing.assert_close(out[valid], alone, **EXACT)


def test_padding_in_the_middle_is_no_token() -> None:
    model = network()
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1]])
    ids = torch.tensor([[3, 4, 9, 9, 5, 9, 6]])
    out = model(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(out, model(torch.tensor([[3, 4, 5, 6]])).logits[0], **EXACT)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_sample_of_padding_alone_stays_finite_and_leaves_the_gradient_alone(backend: str) -> None:
    model = network(backend=backend)
    ids = torch.tensor([[1, 2, 3], [0, 0, 0]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0]])
    out = model(ids, attention_mask=mask, labels=torch.tensor([[1, 2, 3], [-100, -100, -100]]))
    assert bool(out.logits.isfinite().all())
    grads = torch.autograd.grad(out.loss, tuple(model.parameters()))
    alone = model(ids[:1], labels=ids[:1])
    torch.testing.assert_close(out.loss, alone.loss, **EXACT)
    torch.testing.assert_close(grads, torch.autograd.grad(alone.loss, tuple(model.parameters())), **EXACT)


@pytest.mark.parametrize("qk_norm", ["learned", "weightless"])
def test_norms_of_heads(qk_norm: str) -> None:
    """Learned before the rotation, or weightless after it in layers that have one."""
    model = network("NoPE", qk_norm=qk_norm)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.3)
    (ids,) = random_ids(7)
    expected = oracle_logits(model, ids, range(7), lambda kind, query, key: key <= query, 7)
    torch.testing.assert_close(model(torch.tensor([ids])).logits[0], expected, **EXACT)


def test_the_base_that_grows_with_the_text_is_each_texts_own() -> None:
    """Dynamic rotary embeddings: a batch of long and short texts equals them one by one."""
    rotary = DynamicRotary(theta=100.0, factor=3.0, original_max_position_embeddings=4)
    model = network(rotary=rotary)
    rows = random_ids(3, 12, 6)
    alone = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
    for left in (False, True):
        ids, valid = pad(rows, left)
        torch.testing.assert_close(model(ids, attention_mask=valid.long()).logits[valid], alone, **EXACT)


# ---- in any order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@LOOP
@given(data=st.data(), seed=st.integers(0, 99))
def test_two_streams(layers: str, data: st.DataObject, seed: int) -> None:
    """`[content ; query rows]` with different orders in a batch, against the doubled sequence one by one."""
    model = network(layers, data.draw(st.sampled_from(["eager", "sdpa"])), seed)
    length = data.draw(st.integers(1, 6))
    ranks = [data.draw(st.lists(st.integers(0, 4), min_size=length, max_size=length)) for _ in range(2)]
    ids = random_ids(length, length)
    positions = st.lists(st.integers(0, length - 1), max_size=length)
    predicted = [data.draw(positions), data.draw(positions)]
    rows, labels, valid = two_stream(ranks, predicted, ids)
    out = logits(model, groups(), rows, labels, n_keys=length, valid=valid)
    assert bool(out.isfinite().all())
    for b in range(2):
        where = [*range(length), *predicted[b]]

        def sees(kind: LayerKind, query: int, key: int, rank=ranks[b], where=where) -> bool:
            allowed = (
                rank[where[key]] <= rank[where[query]] if query < length else rank[where[key]] < rank[where[query]]
            )
            return allowed and narrowed(kind, where[query], where[key])

        sequence = [*ids[b], *[VOCABULARY - 1] * len(predicted[b])]
        expected = oracle_logits(model, sequence, where, sees, length)
        torch.testing.assert_close(out[b, valid[b]], expected, **EXACT)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_content_stream_from_left_to_right_is_causal_bit_for_bit(backend: str) -> None:
    model = network(backend=backend)
    ids = random_ids(6, 6)
    rows, labels, valid = two_stream([list(range(6))] * 2, [[], []], ids)
    out = logits(model, groups(), rows, labels, valid=valid)
    assert torch.equal(out, model(torch.tensor(ids)).logits)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_content_stream_beside_query_rows_is_causal(backend: str) -> None:
    model = network(backend=backend)
    ids = random_ids(6, 6)
    rows, labels, valid = two_stream([list(range(6))] * 2, [[5, 0, 3], [2]], ids)
    out = logits(model, groups(), rows, labels, valid=valid, n_keys=6)[:, :6]
    torch.testing.assert_close(out, model(torch.tensor(ids)).logits, **EXACT)


def test_a_query_row_does_not_see_its_own_token_nor_what_comes_later() -> None:
    model = network()
    ranks, predicted = [[2, 0, 1, 2, 3]], [[0, 1, 2, 3, 4]]

    def query_logits(ids: list[int]) -> Tensor:
        rows, labels, valid = two_stream(ranks, predicted, [ids])
        return logits(model, groups(), rows, labels, valid=valid, n_keys=5)[0, 5:]

    before_change = query_logits([1, 2, 3, 4, 5])
    for changed, rank in enumerate(ranks[0]):
        ids = [1, 2, 3, 4, 5]
        ids[changed] = 30
        same_rows = (query_logits(ids) == before_change).all(-1).tolist()
        assert same_rows == [other <= rank for other in ranks[0]]


def test_rows_without_keys_read_themselves_alone() -> None:
    """`n_keys` 0: nothing is offered, so each row is a function of its own token."""
    model = network()
    ids = torch.tensor([[5, 9], [9, 5]])
    labels = {"position": torch.tensor([[0, 1], [0, 1]])}
    out = logits(model, bidirectional(), ids, labels, n_keys=0)
    torch.testing.assert_close(out[0], out[1].flip(0), **EXACT)
    expected = oracle_logits(model, [5, 9], [0, 1], lambda kind, query, key: True, 0)
    torch.testing.assert_close(out[0], expected, **EXACT)


def test_masked_diffusion_sees_everything_but_padding() -> None:
    model = network()
    rows = random_ids(6, 4)
    ids, valid = pad(rows)
    out = logits(model, bidirectional(), ids, {"position": torch.arange(6).expand(2, -1)}, valid=valid)
    for b, row in enumerate(rows):
        expected = oracle_logits(model, row, range(len(row)), lambda kind, query, key: True, len(row))
        torch.testing.assert_close(out[b, : len(row)], expected, **EXACT)


@pytest.mark.parametrize("layers", LAYERS)
def test_the_order_of_rows_plays_no_part(layers: str) -> None:
    """Labels say all: rows sorted by rank give what rows in reading order give."""
    model = network(layers)
    (ids,) = random_ids(8)
    position, rank = torch.arange(8).unsqueeze(0), torch.randint(0, 4, (1, 8))
    labels = {"position": position, "rank": rank, "stream": torch.zeros_like(rank)}
    out = logits(model, groups(), torch.tensor([ids]), labels)
    order = rank[0].argsort(stable=True)
    moved = {name: label[:, order] for name, label in labels.items()}
    again = logits(model, groups(), torch.tensor([ids])[:, order], moved)
    torch.testing.assert_close(again, out[:, order], **EXACT)


def test_segments_in_isolation() -> None:
    """Two segments after a prefix give what each gives alone after that prefix, at the same positions."""
    model = network()
    prefix, first, second = random_ids(3, 2, 4)
    position = [0, 1, 2, 3, 4, 3, 4, 5, 6]
    labels = {
        "position": torch.tensor([position]),
        "order": torch.tensor([position]),
        "part": torch.tensor([[0] * 3 + [1] * 6]),
        "segment": torch.tensor([[0] * 3 + [1] * 2 + [2] * 4]),
    }
    together = logits(model, segments(), torch.tensor([prefix + first + second]), labels)[0]
    torch.testing.assert_close(together[:5], model(torch.tensor([prefix + first])).logits[0], **EXACT)
    torch.testing.assert_close(together[5:], model(torch.tensor([prefix + second])).logits[0, 3:], **EXACT)


# ---- views and mistakes ----------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["plain", "NoPE", "window"])
def test_rows_between_whole_positions(layers: str) -> None:
    """Rotary embeddings turn by the fractions; windows and masks go by the label."""
    model = network(layers)
    (ids,) = random_ids(6)
    places = [0.0, 1.0, 1.5, 2.25, 3.0, 4.75]
    position = torch.tensor([[int(place) for place in places]])
    views = {"order": torch.arange(6).unsqueeze(0), "position": position}
    out = model.logits(
        model.hidden(
            torch.tensor([ids]), model.prepare(not_after("order"), views, rotary_positions=torch.tensor([places]))
        )
    )
    expected = oracle_logits(
        model, ids, places,
        lambda kind, row, key: key <= row and narrowed(kind, int(places[row]), int(places[key])), 6,
    )  # fmt: skip
    torch.testing.assert_close(out[0], expected, **EXACT)


def test_layers_of_one_kind_share_a_view() -> None:
    model = network("chunk")
    views = model.prepare(causal(), {"position": torch.arange(6).unsqueeze(0)})
    assert list(views) == [LayerKind(chunk=4), LayerKind(rotary=False)]
    assert views[LayerKind(rotary=False)].cos_sin is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        views[LayerKind(chunk=4)].n_keys = 3  # type: ignore[misc]


def test_a_pass_without_positions_is_refused() -> None:
    model = network()
    cache = model.new_cache(1, 4)
    with pytest.raises(UserError) as error:
        model.prepare(before("rank"), {"rank": torch.tensor([[0, 1]])}, cache=cache)
    assert str(error.value) == (
        "the rows carry the labels ['rank']: add 'position', the true position of each row."
    )  # fmt: skip
    assert not cache.present.any()


def test_a_missing_label_leaves_the_cache_as_it_was() -> None:
    model = network()
    cache = model.new_cache(1, 4)
    with pytest.raises(UserError, match=r"reads 'rank': give that label to every row\.$"):
        model.prepare(before("rank"), {"position": torch.tensor([[0, 1]])}, cache=cache)
    assert not cache.present.any()


def test_a_backend_that_cannot_is_refused() -> None:
    model = network(backend="flex").float()
    with pytest.raises(UserError, match=r"^attention 'flex' has no backward pass on cpu"):
        model(torch.tensor([[1, 2]]))
    with pytest.raises(UserError, match=r"^attention 'flashy' is unknown|^attention is 'flashy': choose one of"):
        network(backend="flashy")(torch.tensor([[1, 2]]))


def test_an_attention_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(SelfAttention):
        def forward(self, rows_BRE: Tensor, view: View, kv: LayerCache | None) -> Tensor:
            return 2 * super().forward(rows_BRE, view, kv)

    monkeypatch.setitem(ATTENTIONS, "doubled", Doubled)
    model, plain = network(attention="doubled"), network()
    assert sum(isinstance(module, Doubled) for module in model.modules()) == 2
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.mul_(2 if "o_proj" in name else 1)
    ids = torch.tensor(random_ids(5))
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, **EXACT)


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(UserError) as error:
        network(attention="MLA")
    assert str(error.value) == "attention is 'MLA': choose one of MHA, GQA, MQA, or register it in ATTENTIONS."


# ---- training --------------------------------------------------------------------------------------


def test_loss_is_the_mean_over_predicted_tokens() -> None:
    model = network()
    ids, valid = pad(random_ids(5, 3))
    labels = ids.masked_fill(~valid, -100)
    labels[0, 2] = -100
    out = model(ids, attention_mask=valid.long(), labels=labels)
    log_p = out.logits.log_softmax(-1)
    expected = [-log_p[b, i - 1, ids[b, i]] for b, i in [(0, 1), (0, 3), (0, 4), (1, 1), (1, 2)]]
    torch.testing.assert_close(out.loss, torch.stack(expected).mean())
    counted = model(ids, attention_mask=valid.long(), labels=labels, num_items_in_batch=20)
    torch.testing.assert_close(counted.loss, torch.stack(expected).sum() / 20)
    assert model(ids).loss is None


def test_the_vocabulary_projection_takes_any_rows() -> None:
    model = network()
    ids, valid = pad(random_ids(5, 3))
    hidden = model.hidden(ids, model.prepare(causal(), {"position": torch.arange(5).expand(2, -1)}, valid=valid))
    assert model.logits(hidden[valid]).shape == (8, VOCABULARY)
    assert torch.equal(model.logits(hidden)[valid], model.logits(hidden[valid]))


def test_tied_weights_are_one_tensor() -> None:
    model = network(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert network().lm_head.weight is not network().model.embed_tokens.weight


def test_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        model = network()
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


def test_autocast_stays_near() -> None:
    model = network().float()
    ids = torch.tensor(random_ids(9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(ids, labels=ids)
    torch.testing.assert_close(narrow.loss.float(), model(ids, labels=ids).loss, rtol=0.1, atol=0)


# ---- compilation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["causal", "groups", "narrowed", "padded", "no keys"])
def test_one_graph_without_breaks(case: str) -> None:
    model = network("chunk" if case == "narrowed" else "plain", "sdpa")
    ids, valid = pad(random_ids(7, 7 if case == "causal" else 4))
    position = torch.arange(7).expand(2, -1)
    labels = {"position": position, "rank": torch.randint(0, 3, (2, 7)), "stream": (position > 4).long()}
    views = model.prepare(
        {"groups": groups() | same("position")}.get(case, causal()),
        labels,
        valid=valid if case == "padded" else None,
        n_keys={"groups": 5, "no keys": 0}.get(case),
    )
    torch._dynamo.reset()
    compiled = torch.compile(model.hidden, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, views), model.hidden(ids, views), **EXACT)
    torch._dynamo.reset()


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("cached", [False, True])
def test_queries_are_what_they_are_among_all_rows(layers: str, cached: bool) -> None:
    model = network(layers).double()
    ids_BR, valid_BR = pad(random_ids(7, 4, 1))
    labels = {"position": torch.arange(7).expand(3, 7)}
    queries_BQ = torch.tensor([[6, 0, 3], [1, 3, 0], [0, 0, 0]])
    for visibility in (causal(), bidirectional()):
        outs = []
        for queries in (None, queries_BQ):
            cache = model.new_cache(3, 7) if cached else None
            views = model.prepare(visibility, labels, valid=valid_BR, cache=cache, queries=queries)
            outs.append(model.hidden(ids_BR, views, cache))
        torch.testing.assert_close(outs[1], outs[0][torch.arange(3).unsqueeze(1), queries_BQ], rtol=1e-9, atol=1e-12)
