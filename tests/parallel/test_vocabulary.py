"""Draws with noise that is keyed; `test_writing` compares split scores with whole ones."""

from __future__ import annotations

import torch

from anyorder.parallel import vocabulary


def test_draws_have_the_distribution_and_depend_on_their_key_alone() -> None:
    count = 20_000
    probabilities = torch.tensor([0.5, 0.25, 0.2, 0.05, 0.0])
    logits = probabilities.log().expand(count, -1)
    sample = torch.arange(count)

    def drawn(number: int = count, **changes: int) -> torch.Tensor:
        key = {"seed": 1, "position": 3} | changes
        return vocabulary.draw(
            logits[:number], temperature=1.0, seed=key["seed"], sample_N=sample[:number],
            position_N=torch.full((number,), key["position"]),
        )  # fmt: skip

    shares = torch.bincount(drawn(), minlength=5) / count
    spread = (probabilities * (1 - probabilities) / count).sqrt()
    assert ((shares - probabilities).abs() <= 4 * spread).all()
    assert torch.equal(drawn(10), drawn()[:10])
    for changes in ({"seed": 2}, {"position": 4}):
        agree = (drawn(**changes) == drawn()).double().mean()
        by_chance = probabilities.square().sum()
        assert abs(agree - by_chance) < 4 * (by_chance * (1 - by_chance) / count).sqrt()
