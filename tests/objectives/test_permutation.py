"""Two streams: plans from schedules, and gradients against two oracles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from anyorder.checkpoints.adapt import adapt
from anyorder.errors import UserError
from anyorder.model.llama import Llama
from anyorder.model.modes import ANY_ORDER, LEFT_TO_RIGHT
from anyorder.objectives import Always, Annealing, Autoregressive, Batch, Permutation, Stages, growing, summed_loss
from anyorder.orders.kinds import LeftToRight, Random, RightToLeft, Spans
from anyorder.visibility import not_after
from tests.objectives.cases import learner, ragged
from tests.parity.test_model import twins


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("predicted", [1.0, 0.4])
def test_gradients_equal_those_of_each_prediction_alone(predicted: float) -> None:
    """The slow twin: for each predicted token a pass of its own over the tokens before it, and one query row."""
    model, batch = learner(), ragged(7, 5, 6, prompts=True, packed=True)
    objective = Permutation(predicted=predicted)
    inputs = objective.inputs(batch, seed=3)
    loss = summed_loss(model, inputs) / inputs.count
    loss.backward()
    ours = gradients_of(model)
    model.zero_grad()
    plan = objective.plan(batch, seed=3)
    assert model.query_rows is not None
    total, count = torch.zeros(()), 0
    for b, steps in enumerate(plan.steps):
        for [token] in steps:
            document = batch.document_BL[b, token]
            before = [
                t
                for t in range(batch.ids_BL.shape[1])
                if plan.valid_BL[b, t]
                and batch.document_BL[b, t] == document
                and plan.rank_BL[b, t] < plan.rank_BL[b, token]
            ]
            rank = [int(plan.rank_BL[b, t]) for t in before]  # given tokens are one group and see each other
            position = batch.position_BL[b, [*before, token]].unsqueeze(0)
            views = model.prepare(
                not_after("rank"), {"position": position, "rank": torch.tensor([[*rank, 99]])}, n_keys=len(before)
            )
            rows = torch.cat(
                (model.model.embed_tokens(batch.ids_BL[b, before].unsqueeze(0)), model.query_rows(position[:, -1:])), 1
            )
            logits_V = model.logits(model.read(rows, views)[0, -1])
            total = total - logits_V.log_softmax(-1)[batch.ids_BL[b, token]]
            count += 1
    assert count == inputs.count
    (total / count).backward()
    assert loss.item() == pytest.approx(total.item() / count, rel=1e-12)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def doubled(theirs: LlamaForCausalLM, ours: Llama, batch: Batch, objective: Permutation) -> torch.Tensor:
    """The loss by an untouched causal Llama on `[tokens ; query rows]`, in the order of the text, with one mask."""
    plan = objective.plan(batch, seed=0)
    assert ours.query_rows is not None
    tokens = theirs.model.embed_tokens(batch.ids_BL)
    rows = torch.cat((tokens, ours.query_rows(batch.position_BL)), 1)
    rank_B1L, rank_BL1 = plan.rank_BL.unsqueeze(1), plan.rank_BL.unsqueeze(2)
    content, query = rank_B1L <= rank_BL1, rank_B1L < rank_BL1
    left = torch.cat((content, query), 1) & plan.valid_BL.unsqueeze(1)
    mask = torch.cat((left, torch.zeros_like(left)), 2).unsqueeze(1)
    position = torch.cat((batch.position_BL, batch.position_BL), 1)
    out = theirs(inputs_embeds=rows, attention_mask=mask, position_ids=position, use_cache=False)
    wanted = plan.predicted
    query_logits = out.logits[:, batch.ids_BL.shape[1] :]
    return F.cross_entropy(query_logits[wanted], batch.ids_BL[wanted])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)])
@pytest.mark.parametrize("variant", ["GQA", "tied"])
def test_gradients_equal_transformers_on_the_doubled_sequence(
    variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Relative to the largest entry of each gradient; transformers has norms and angles in float32 always."""
    plain, theirs = twins(variant)
    theirs = theirs.to(dtype)
    ours = adapt(plain.to(dtype), (LEFT_TO_RIGHT, ANY_ORDER))
    batch = ragged(14, 9, 11, prompts=True)  # the prompts are given: no row sees nothing, of which SDPA makes NaN
    objective = Permutation(predicted=0.7)
    inputs = objective.inputs(batch, seed=0)
    loss = summed_loss(ours, inputs) / inputs.count
    loss.backward()
    query = [weight.grad for weight in ours.query_rows.parameters()] if ours.query_rows else []
    for weight in ours.query_rows.parameters() if ours.query_rows else ():
        weight.grad = None
    expected = doubled(theirs, ours, batch, objective)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    pairs = [(ours.get_parameter(name).grad, weight.grad) for name, weight in theirs.named_parameters()]
    assert ours.query_rows is not None
    pairs += [(before, weight.grad) for before, weight in zip(query, ours.query_rows.parameters(), strict=True)]
    for gradient, reference in pairs:
        assert gradient is not None
        assert reference is not None
        assert (gradient - reference).abs().max() <= tolerance * reference.abs().max()


def test_the_last_of_the_order_are_predicted_and_rounded_up() -> None:
    batch = ragged(12, 5)
    full, sixth = (Permutation(predicted=share).plan(batch, seed=0) for share in (1.0, 1 / 6))
    assert [steps[-count:] for steps, count in zip(full.steps, (2, 1), strict=True)] == sixth.steps
    assert sixth.rank_BL.tolist() == full.rank_BL.tolist()
    inputs = Permutation(predicted=1 / 6).inputs(batch, seed=0)
    assert inputs.ids_BR.shape == (2, 12 + 2)
    assert inputs.count == 3
    # 0.1 x 30 is a little more than 3 in floating point.
    assert Permutation(predicted=0.1).inputs(ragged(30), seed=0).count == 3


def test_prompts_are_given_and_padding_is_nothing() -> None:
    batch = ragged(9, 6, prompts=True)
    plan = Permutation().plan(batch, seed=0)
    assert plan.given_BL.tolist() == (batch.valid_BL & ~batch.loss_mask_BL).tolist()
    assert {rank for rank, given in zip(plan.rank_BL[0].tolist(), plan.given_BL[0].tolist(), strict=True) if given} == {
        0
    }


def test_left_to_right_content_is_the_causal_network_to_the_bit() -> None:
    model, batch = learner(), ragged(8)
    inputs = Permutation(schedule=Always(LeftToRight())).inputs(batch, seed=0)
    views = model.prepare(inputs.visibility, inputs.labels, n_keys=inputs.n_keys, valid=inputs.valid_BR)
    queries = model.query_rows(inputs.labels["position"][:, 8:]) if model.query_rows else None
    assert queries is not None
    rows = torch.cat((model.model.embed_tokens(batch.ids_BL), queries), 1)
    content = model.read(rows, views)[:, :8]
    causal_inputs = Autoregressive().inputs(batch, seed=0)
    views = model.prepare(causal_inputs.visibility, causal_inputs.labels)
    torch.testing.assert_close(content, model.hidden(batch.ids_BL, views), rtol=1e-6, atol=1e-6)


def test_the_schedule_is_asked_for_the_step() -> None:
    schedule = Stages({0: LeftToRight(), 5: RightToLeft()})
    objective = Permutation(schedule=schedule)
    assert objective.plan(ragged(4, step=4), 0).steps == [[[0], [1], [2], [3]]]
    assert objective.plan(ragged(4, step=5), 0).steps == [[[3], [2], [1], [0]]]


def test_sizes_grow() -> None:
    schedule = growing(every=10)
    assert [schedule.order(step, 0.0) for step in (0, 9, 10, 25, 30, 999)] == [
        Random(), Random(), Random(size=2), Random(size=4), Random(size=8), Random(size=8),
    ]  # fmt: skip


def test_annealing_moves_the_share_of_the_last_order() -> None:
    there = Annealing(steps=10, begin=5)
    assert [there.order(step, 0.5) for step in (0, 5, 10, 11, 15, 99)] == [
        Random(), Random(), Random(), LeftToRight(), LeftToRight(), LeftToRight(),
    ]  # fmt: skip
    assert there.order(15, 0.999) == LeftToRight()
    assert there.order(4, 0.0) == there.order(5, 0.0) == Random()
    back = Annealing(steps=4, first=LeftToRight(), last=Spans())
    assert back.order(0, 0.1) == LeftToRight()
    assert back.order(4, 0.9) == Spans()
    # Over many samples: about half of 400 in the middle, give or take four standard deviations.
    objective = Permutation(schedule=Annealing(steps=10))
    batch = Batch.of([[1, 2, 3, 4, 5, 6]] * 400, step=5)
    ordered = sum(steps == [[t] for t in range(6)] for steps in objective.plan(batch, seed=0).steps)
    assert abs(ordered - 200) < 40


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Permutation(predicted=0.0), "predicted is 0.0: give a share of the tokens above 0 and at most 1."),
        (lambda: Stages({3: Random()}), "the stages begin at steps [3]: let the first begin at 0."),
        (lambda: Stages({}), "the stages begin at steps []: let the first begin at 0."),
        (lambda: growing(0), "every is 0: give a number of steps above 0."),
        (lambda: Annealing(steps=0), "steps is 0: give the number of steps of the annealing, above 0."),
        (
            lambda: Permutation().inputs(Batch.of([[1, 2]], [2]), 0),
            "sample 0 has nothing to predict: leave at least one of its tokens not given.",
        ),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value) == message
