"""What becomes of the loss beyond the trained length: full attention, chunks with NoPE, dynamic NTK, YaRN?

Two networks that differ in their layers alone learn short rows of stories: one whose layers all see the whole text,
with rotary embeddings; and one that is mixed as Llama 4 is, of each four layers three that see their own chunk, and one
that sees all and has no rotary embedding. Both read stories that were held back, in rows eight times as long; the first
one also with its rotary embedding scaled by dynamic NTK and by YaRN, the mixed one also with queries that grow with
their position, all without further training. Memory is counted, too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from anyorder.model.config import LayerKind, ModelConfig
from anyorder.model.llama import Llama
from anyorder.model.query_scale import QueryScale
from anyorder.model.rope import DynamicRotary, Rotary, YarnRotary
from anyorder.objectives import Autoregressive
from anyorder.training import Training
from anyorder.visibility import causal
from evidence.frame import SEEDS, Finding, Study
from evidence.stories import Stories, losses, stories_text

TITLE = "Beyond the trained length: loss and memory by position"
LOSS = "loss held back within the trained length, nats per token"
GAIN = "loss less that of full attention at the same positions, nats per token"
GROWTH = "loss less that within the trained length, nats per token, by position"
SEEN = "keys and values that the next token sees, MB, by tokens of the text"
PEAK = "peak of a pass beside the weights, MB, by tokens of the text"
FULL_ATTENTION, DYNAMIC, YARN = "full attention", "dynamic NTK", "YaRN"
MIXED, GROWING = "chunks and NoPE", "the same, queries grow"
RATE = 3e-3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is trained and measured; texts of `times` trained lengths are read, and memory is that of `lengths`."""

    vocabulary: int
    hidden: int
    length: int
    times: int
    chunk: int
    bucket: int
    batch: int
    steps: int
    held: int
    lengths: tuple[int, ...]
    seeds: tuple[int, ...]


FULL = Sizes(
    vocabulary=512, hidden=96, length=128, times=8, chunk=32, bucket=128, batch=8, steps=250, held=64,
    lengths=(128, 512, 1024, 2048), seeds=SEEDS,
)  # fmt: skip
QUICK = Sizes(
    vocabulary=300, hidden=24, length=16, times=4, chunk=4, bucket=16, batch=4, steps=8, held=8, lengths=(8, 32),
    seeds=(0,),
)  # fmt: skip


def networks(sizes: Sizes) -> dict[str, ModelConfig]:
    """Networks, all of which have the same weights by name and shape."""
    full = ModelConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=4,
        num_attention_heads=3,
        max_position_embeddings=sizes.length,
        rotary=Rotary(theta=10_000.0),
        tie_word_embeddings=True,
    )

    def mixed(scale: QueryScale | None) -> ModelConfig:
        local, wide = LayerKind(chunk=sizes.chunk), LayerKind(rotary=False, query_scale=scale)
        return full.replace(layers=(local, local, local, wide))

    # Dynamic NTK by the factor 1, whose base grows with the text alone; YaRN by the factor of the lengths.
    trained = sizes.length
    dynamic = DynamicRotary(theta=10_000.0, factor=1.0, original_max_position_embeddings=trained)
    yarn = YarnRotary(theta=10_000.0, factor=float(sizes.times), original_max_position_embeddings=trained)
    return {
        FULL_ATTENTION: full,
        DYNAMIC: full.replace(rotary=dynamic),
        YARN: full.replace(rotary=yarn),
        MIXED: mixed(None),
        GROWING: mixed(QueryScale(strength=0.1, period=trained)),
    }


def findings(study: Study) -> Iterable[Finding]:
    """Train both networks, read long rows by all, count memory."""
    sizes = QUICK if study.quick else FULL
    learnt_NL, held_NL = (torch.tensor(rows) for rows in study.part("rows", lambda: rows_of(study, sizes)))
    configs = networks(sizes)
    by_name: dict[str, list[list[list[float]]]] = {name: [] for name in configs}  # of each seed and bucket, texts
    for seed in sizes.seeds:
        training = Training(steps=sizes.steps, batch_size=sizes.batch, learning_rate=RATE, seed=seed, save_every=0)
        trained = {}
        for number, name in enumerate((FULL_ATTENTION, MIXED)):
            torch.manual_seed(seed)
            start = Llama(configs[name])
            trained[name] = study.trained(
                f"network-{number}-{seed}", lambda start=start: start, Autoregressive(), learnt_NL, training
            )
        for number, (name, config) in enumerate(configs.items()):
            model = with_config(trained[MIXED if name in (MIXED, GROWING) else FULL_ATTENTION], config)
            by_name[name].append(
                study.part(
                    f"losses-{number}-{seed}",
                    lambda model=model: in_buckets(losses(model, held_NL, max(1, sizes.batch // 4)), sizes.bucket),
                )
            )
    buckets = range(len(by_name[FULL_ATTENTION][0]))
    labels = [f"{at * sizes.bucket} to {(at + 1) * sizes.bucket - 1}" for at in buckets]
    found = [
        Finding.of(LOSS, labels[0], name, [buckets[0] for buckets in by_seed]) for name, by_seed in by_name.items()
    ]
    found += [
        Finding.of(GROWTH, labels[at], name, differences(by_seed, at, by_seed, 0), at=(at + 0.5) * sizes.bucket)
        for name, by_seed in by_name.items()
        for at in buckets
    ]
    full, last = by_name[FULL_ATTENTION], buckets[-1]
    found += [
        Finding.of(GAIN, labels[at], name, differences(by_seed, at, full, at))
        for name, by_seed in by_name.items()
        for at in (0, last // 2, last)
        if name != FULL_ATTENTION
    ]
    memories = study.part(
        "memory", lambda: {name: memory(configs[name], sizes.lengths) for name in (FULL_ATTENTION, MIXED)}
    )
    for group, key in ((SEEN, "seen"), (PEAK, "peak")):
        found += [
            Finding.exact(group, f"{line['length']} tokens", name, line[key] / 1e6, at=line["length"])
            for name, lines in memories.items()
            for line in lines
        ]
    return found


def differences(
    by_seed: Sequence[Sequence[Sequence[float]]], at: int, others: Sequence[Sequence[Sequence[float]]], other_at: int
) -> list[list[float]]:
    """Of each seed and text, its loss in a bucket less its loss in another one, or by another network."""
    return [
        [one - other for one, other in zip(buckets[at], against[other_at], strict=True)]
        for buckets, against in zip(by_seed, others, strict=True)
    ]


def rows_of(study: Study, sizes: Sizes) -> list[list[list[int]]]:
    """Rows to learn, and long rows held back."""
    stories = Stories(stories_text(study.data), sizes.vocabulary)
    learnt = stories.rows(stories.learnt, sizes.length)[: sizes.steps * sizes.batch]
    return [learnt.tolist(), stories.rows(stories.held_back, sizes.length * sizes.times)[: sizes.held].tolist()]


def with_config(model: Llama, config: ModelConfig) -> Llama:
    """The same weights in a network of another description."""
    other = Llama(config)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    return other.eval()


def in_buckets(losses_NL: torch.Tensor, size: int) -> list[list[float]]:
    """Of each bucket of positions and text the mean; the first token of a text, which nothing predicts, is left out."""
    first, rest = losses_NL[:, : size - 1], losses_NL[:, size - 1 :].split(size, dim=1)
    return [part.mean(1).tolist() for part in (first, *rest)]


def memory(config: ModelConfig, lengths: Sequence[int]) -> list[dict[str, int]]:
    """For texts of several lengths: bytes of a cache, of its part that the next token sees, and the peak of a pass."""
    torch.manual_seed(0)
    model = Llama(config).eval()
    lines = []
    for length in lengths:
        cache = model.new_cache(1, length)
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        position = torch.arange(length).unsqueeze(0)
        last, every = {"position": position[:, -1:]}, {"position": position}
        seen: Mapping[LayerKind, torch.Tensor] = {
            kind: (causal() if kind.narrowing is None else causal() & kind.narrowing).mask(last, every).sum()
            for kind in config.kinds
        }
        one_key = held // (len(cache.layers) * (length + 1))
        reads = one_key * sum(int(seen[kind]) for kind in config.layers)
        lines.append({"length": length, "cache": held, "seen": reads, "peak": peak(model, length)})
    return lines


@torch.no_grad()
def peak(model: Llama, length: int) -> int:
    """Bytes that a pass over a text holds at most, beside the weights; logits of the last row alone."""
    ids = torch.zeros(1, length, dtype=torch.long)

    def read() -> None:
        views = model.prepare(causal(), {"position": torch.arange(length).unsqueeze(0)})
        model.logits(model.hidden(ids, views)[:, -1])

    read()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        read()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
