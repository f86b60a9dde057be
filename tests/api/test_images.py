"""Images in prompts: where their rows come to lie, what is written with them in every mode, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import anyorder
from anyorder.api.images import Images
from anyorder.api.tiles import load_image, tiles_of
from anyorder.errors import UserError
from anyorder.likelihood.diffusion import Enumeration, diffusion_log_prob
from anyorder.likelihood.exact import left_to_right_log_prob
from anyorder.model.llama import Llama
from anyorder.orders.plan import GroupPlan
from anyorder.visibility import causal
from tests import vision
from tests.api.llama4_tiles import image

WIDE, SMALL = image(90, 40), image(30, 30)
"""Three tiles: two, and the whole image; and a single one."""

START, END, MARK, PATCH, NEXT_TILE, NEXT_ROW = (vision.tokenizer().convert_tokens_to_ids(n) for n in vision.OF_IMAGES)

MODES = ("left-to-right", "any-order", "groups:2", "diffusion")


@pytest.fixture
def model() -> Llama:
    return vision.network()


@pytest.fixture
def tokenizer() -> Any:
    return vision.tokenizer()


def encoded(model: Llama, *images: Image.Image) -> Tensor:
    """The rows of images, one after the other."""
    assert model.config.vision is not None
    with torch.no_grad():
        return torch.cat([model.image_rows(tiles_of(one, model.config.vision)[0]).flatten(0, 1) for one in images])


def greedy(model: Llama, ids: Sequence[int], rows: Tensor, tokens: int) -> list[int]:
    """What is written from left to right, by reading embeddings into which the rows were put, again for each token."""
    written: list[int] = []
    for _ in range(tokens):
        text = torch.tensor([[*ids, *written]])
        with torch.no_grad():
            embedded = model.model.embed_tokens(text)
            embedded[0, torch.tensor([*ids]).eq(PATCH).nonzero()[:, 0]] = rows
            views = model.prepare(causal(), {"position": torch.arange(text.shape[1])[None]})
            written.append(int(model.logits(model.read(embedded, views))[0, -1].argmax()))
    return written


# ------------------------------------------------------------------------------------------------ where rows lie


def spelled(rows: int, columns: int, of_tile: int = 4) -> str:
    """As transformers' `Llama4Processor` spells an image of so many rows and columns of tiles."""
    tile = "<|patch|>" * of_tile
    tiles = ("<|tile_x_separator|>".join([tile] * columns) + "<|tile_y_separator|>") * rows
    return f"<|image_start|>{tiles if rows * columns > 1 else ''}<|image|>{tile}<|image_end|>"


@pytest.mark.parametrize(
    ("one", "grid"), [(WIDE, (1, 2)), (SMALL, (1, 1)), (image(20, 300), (4, 1)), (image(112, 110), (2, 2))]
)
def test_how_an_image_is_spelled(model: Llama, tokenizer: Any, one: Image.Image, grid: tuple[int, int]) -> None:
    out = anyorder.generate(model, tokenizer, "what <|image|> ?", images=[one], max_new_tokens=1)
    assert out.sequences[0][:-1] == tokenizer(f"what {spelled(*grid)} ?")["input_ids"]


def test_what_is_written_is_that_of_the_embeddings(model: Llama, tokenizer: Any) -> None:
    out = anyorder.generate(
        model, tokenizer, "a <|image|> is <|image|> ?", images=[WIDE, SMALL], order="left-to-right", max_new_tokens=6
    )
    prompt = out.sequences[0][: -len(out.token_ids)]
    assert prompt.count(PATCH) == 16
    assert out.token_ids == greedy(model, prompt, encoded(model, WIDE, SMALL), 6)


@pytest.mark.parametrize("order", MODES)
def test_every_mode_alone_and_in_company(model: Llama, tokenizer: Any, order: str) -> None:
    options: dict[str, Any] = {"order": order, "max_new_tokens": 5}
    prompts = ["what is <|image|> ?", "say it", "a <|image|> of <|image|>", "what is <|image|> ?"]
    images = [[WIDE], [], [SMALL, WIDE], [SMALL]]
    batch = anyorder.generate(model, tokenizer, prompts, images=images, **options)
    for number, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        alone = anyorder.generate(model, tokenizer, prompt, images=own or None, **options)
        assert batch.token_ids[number] == alone.token_ids
        assert batch.sequences[number] == alone.sequences[0]
        assert alone.full_text == f"{prompt}{alone.text}"
        slow = anyorder.generate(model, tokenizer, prompt, images=own or None, use_cache=False, **options)
        assert slow.token_ids == alone.token_ids
    assert batch.token_ids[0] != batch.token_ids[3]  # images alone tell them apart
    # A network that had images before has none now.
    assert model.image_rows_NE is None


@pytest.mark.parametrize("order", ["any-order", "diffusion"])
def test_gaps_beside_images(model: Llama, tokenizer: Any, order: str) -> None:
    out = anyorder.generate(model, tokenizer, "a [...] <|image|> of [...]", images=[SMALL], order=order, gap_tokens=2)
    assert out.sequences[0].count(PATCH) == 4
    assert len(out.token_ids) == 4
    if order == "any-order":
        likeliest = anyorder.generate(
            model, tokenizer, "a [...] <|image|> of [...]", images=[SMALL], order=order, gap_tokens=[1, 2]
        )
        assert likeliest.sequences[0].count(PATCH) == 4


def test_samples_beams_penalties_and_streams(model: Llama, tokenizer: Any) -> None:
    options: dict[str, Any] = {"images": [WIDE], "order": "left-to-right", "max_new_tokens": 4}
    drawn = anyorder.generate(model, tokenizer, "is <|image|>", num_samples=3, temperature=2.0, **options)
    assert len({tuple(ids) for ids in drawn.token_ids}) > 1
    beams = anyorder.generate(model, tokenizer, "is <|image|>", num_beams=3, **options)
    assert beams.sequences[0].count(PATCH) == 12
    penalised = anyorder.generate(model, tokenizer, "is <|image|>", repetition_penalty=5.0, **options)
    assert len(set(penalised.token_ids)) == 4
    stream = anyorder.stream(model, tokenizer, "is <|image|>", **options)
    text = "".join(stream)
    assert stream.output.sequences == anyorder.generate(model, tokenizer, "is <|image|>", **options).sequences
    assert text == stream.output.text


def test_images_without_a_mark_come_first(model: Llama, tokenizer: Any) -> None:
    marked = anyorder.generate(model, tokenizer, "<|image|> <|image|> what is", images=[WIDE, SMALL])
    plain = anyorder.generate(model, tokenizer, "what is", images=[WIDE, SMALL])
    assert plain.sequences == marked.sequences
    begun = anyorder.generate(model, tokenizer, [1, 9], images=[SMALL])
    assert begun.sequences[0][:7] == [1, START, MARK, PATCH, PATCH, PATCH, PATCH]


def test_token_ids_with_image_tokens_need_no_tokenizer(model: Llama, tokenizer: Any) -> None:
    named = anyorder.generate(model, tokenizer, "what <|image|>", images=[SMALL], max_new_tokens=4)
    ids = named.sequences[0][: -len(named.token_ids)]
    assert anyorder.generate(model, None, ids, images=[SMALL], max_new_tokens=4).token_ids == named.token_ids


def test_messages(model: Llama, tokenizer: Any, tmp_path: Path) -> None:
    WIDE.save(tmp_path / "wide.png")
    text = {"type": "text", "text": "what is"}
    expected = anyorder.generate(model, tokenizer, "<|image|> what is", images=[WIDE]).sequences
    for part, images in (
        ({"type": "image", "image": WIDE}, None),
        ({"type": "image", "path": str(tmp_path / "wide.png")}, None),
        ({"type": "image_url", "image_url": {"url": str(tmp_path / "wide.png")}}, None),
        ({"type": "image"}, [WIDE]),
    ):
        messages = [{"role": "user", "content": [part, text]}]
        assert anyorder.generate(model, tokenizer, messages, images=images).sequences == expected
        both = anyorder.generate(
            model, tokenizer, [messages, messages], images=None if images is None else [images, images]
        )
        assert both.sequences == expected * 2
    messages = [{"role": "user", "content": [{"type": "image", "image": WIDE}, text]}]
    with pytest.raises(UserError, match="images is given beside messages that have images themselves: leave out one"):
        anyorder.generate(model, tokenizer, messages, images=[WIDE])


# ------------------------------------------------------------------------------------------------ likelihood


def test_no_likelihood_scores_a_row_of_an_image(model: Llama, tokenizer: Any) -> None:
    seen = Images(model, tokenizer, [SMALL])
    [ids] = seen.place([tokenizer("what <|image|> is this ?")["input_ids"]], single=True)
    words = [token_id < vision.VOCABULARY for token_id in ids]
    rows = torch.tensor([not word for word in words])
    plan = GroupPlan.sequential([len(ids)], given=[1])
    exact = anyorder.log_prob(seen.model, [ids], plan)
    assert not bool(exact.predicted_BL[0, rows].any())
    assert bool((exact.token_BL[0, rows] == 0).all())
    # The same as with a plan that has them as given.
    given = GroupPlan.from_masks(
        [[not word or at == 0 for at, word in enumerate(words)]], [[word and at > 0 for at, word in enumerate(words)]]
    )
    assert torch.allclose(exact.token_BL, anyorder.log_prob(seen.model, [ids], given).token_BL)
    causally = left_to_right_log_prob(seen.model, [ids], plan)
    assert not bool(causally.predicted_BL[0, rows].any())
    few = list(range(len(ids) - 6, len(ids)))
    bounds = [
        diffusion_log_prob(seen.model, [ids], [scored], method=Enumeration(), mode=model.config.mode("diffusion"))[0]
        for scored in (few, [at for at in few if words[at]])
    ]
    assert bounds[0].log_prob == bounds[1].log_prob
    assert bounds[0].tokens == sum(words[at] for at in few) < len(few)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("<|image|> <|image|>", [SMALL], r"prompt 0 has 2 <\|image\|>s for 1 image: write it once for each image"),
        ([PATCH] * 5, [SMALL], "prompt 0 has 5 image tokens for 1 image of 4 rows: give an image token for each"),
        (["a", "is"], [SMALL], "images has another form than the prompt, which is a list of 2 prompts: give a li"),
        ("a", [[SMALL]], "images has another form than the prompt, which is one prompt: give a list of images"),
        (["a", "is"], [[SMALL]], "images is 1 lists for 2 prompts: give a list for each, which may be empty"),
        ("a", [], r"images is \[\]: give a list of at least one image, or of one list per prompt"),
        ("a", "a.png", "images is 'a.png': give a list of at least one image"),
        ([3, 40], [SMALL], "prompt 0 has the token id 40: give ids from 0 to 31, from the tokenizer of this network"),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(model: Llama, tokenizer: Any, prompt: Any, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        anyorder.generate(model, tokenizer, prompt, images=images)


def test_networks_and_tokenizers_that_know_no_images(model: Llama, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="there are images, and this network has no vision: leave them out, or load"):
        anyorder.generate(vision.network(vision=None), tokenizer, "a", images=[SMALL])
    with pytest.raises(UserError, match="this network has no vision, so it reads no image"):
        vision.network(vision=None).image_rows(torch.zeros(1, 3, 56, 56))
    with pytest.raises(
        UserError, match="there are images and tokenizer is None: give the tokenizer, or token ids with"
    ):
        anyorder.generate(model, None, [1, 9], images=[SMALL])
    from anyorder.data.tokenizer import train_tokenizer

    other = train_tokenizer(["what is this"], 300)
    with pytest.raises(UserError, match=r"the tokenizer has no token '<\|image\|>', which images need: give that of"):
        anyorder.generate(model, other, [1, 9], images=[SMALL])
    with pytest.raises(UserError, match="there is the token id 32: give ids from 0 to 31"):
        anyorder.generate(model, tokenizer, [3, 32])


def test_a_whole_run_on_photographs(model: Llama, tokenizer: Any, shared_data: Path) -> None:
    files = sorted((shared_data / "images").glob("*.[pj]*g"))
    assert len(files) == 5
    prompts = ["what is <|image|> ?"] * 5
    for order in MODES:
        out = anyorder.generate(
            model, tokenizer, prompts, images=[[file] for file in files], order=order, max_new_tokens=3
        )
        assert len({sum(e.log_prob for e in out.trace.events if e.sample_id == row) for row in range(5)}) == 5
    alone = anyorder.generate(model, tokenizer, prompts[0], images=[files[2]], order="diffusion", max_new_tokens=3)
    assert alone.token_ids == out.token_ids[2]
    rows = encoded(model, *(load_image(file) for file in files))
    assert len(rows) == [token for ids in out.sequences for token in ids].count(PATCH)


# ------------------------------------------------------------------------------------------------ as a face


def test_a_model_of_transformers_keeps_its_vision(model: Llama, tokenizer: Any, tmp_path: Path) -> None:
    """It reads text as it is called, writes about images by `generate`, and is saved with all that it has."""
    face = anyorder.AnyOrderForCausalLM.of(model)
    ids = torch.tensor([[1, 9, 10, 11]])
    with torch.no_grad():
        assert torch.equal(face(ids).logits, model(ids).logits)
    options: dict[str, Any] = {"images": [WIDE], "max_new_tokens": 4}
    expected = anyorder.generate(model, tokenizer, "is <|image|>", **options)
    assert anyorder.generate(face, tokenizer, "is <|image|>", **options).token_ids == expected.token_ids
    face.save_pretrained(tmp_path / "saved")
    for again in (
        anyorder.load(tmp_path / "saved")[0],
        anyorder.AnyOrderForCausalLM.from_pretrained(tmp_path / "saved"),
    ):
        assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ fusion


@pytest.mark.parametrize("order", MODES)
def test_phrasings_of_a_question_about_an_image(model: Llama, tokenizer: Any, order: str) -> None:
    options: dict[str, Any] = {"suffix": "?", "order": order, "max_new_tokens": 4}
    phrasings = ["what is this", "say what this is"]
    out = anyorder.fuse(model, tokenizer, phrasings, prefix="a <|image|>", images=[WIDE], **options)
    assert out.sequences[0].count(PATCH) == 12
    # Copies of one phrasing are the phrasing, whose prompt is a plain one.
    copies = anyorder.fuse(model, tokenizer, phrasings[:1] * 3, prefix="a <|image|>", images=[WIDE], **options)
    plain = anyorder.generate(
        model, tokenizer, "a <|image|> what is this ?", images=[WIDE], order=order, max_new_tokens=4
    )
    assert copies.token_ids == plain.token_ids
    two = anyorder.fuse(
        model, tokenizer, [phrasings, phrasings], prefix="a <|image|>", images=[[SMALL], [WIDE]], **options
    )
    assert two.token_ids[1] == out.token_ids
    assert two.sequences[0].count(PATCH) == 4


def test_fusion_by_other_methods_streams_and_stores(model: Llama, tokenizer: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"prefix": "a <|image|>", "suffix": "?", "max_new_tokens": 3, "images": [WIDE]}
    phrasings = ["what is this", "say what this is"]
    for method in ("logit-mean", "contrast", "vote"):
        assert anyorder.fuse(model, tokenizer, phrasings, method=method, **options).sequences[0].count(PATCH) == 12
    beams = anyorder.fuse(model, tokenizer, phrasings, num_beams=2, **options)
    assert beams.sequences[0].count(PATCH) == 12
    shares = anyorder.fuse(model, tokenizer, phrasings, attention_share=True, **options).attention_share
    assert shares is not None
    stream = anyorder.stream_fused(model, tokenizer, phrasings, **options)
    assert "".join(stream) == anyorder.fuse(model, tokenizer, phrasings, **options).text
    with pytest.raises(UserError, match=r"store '.*' is given beside images, whose keys no store keeps: leave it out"):
        anyorder.fuse(model, tokenizer, phrasings, store=tmp_path, **options)
    with pytest.raises(UserError, match=r"the prefix of question 0 has 2 .*s for 1 image: write it once for each"):
        anyorder.fuse(model, tokenizer, phrasings, **options | {"prefix": "<|image|> <|image|>"})
