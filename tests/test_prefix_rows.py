"""Which row is which, and that rows may be stored one by one and put together anew."""

import pytest
import torch

from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut
from hf_transfer_plugin.prefix_cache.entries import Part, join_rows, make_parts, split_rows
from hf_transfer_plugin.prefix_cache.finding import find_cut
from hf_transfer_plugin.prefix_cache.passage import Address
from hf_transfer_plugin.prefix_cache.proving import Place, prove_storage
from hf_transfer_plugin.prefix_cache.rows import Span, row_digests, row_spans, span_along
from hf_transfer_plugin.prefix_cache.storage import Slot
from tests.tiny_prefixes import MAKERS, images, prefix, text, upper, wav2vec2, waves

CPU = Place(torch.device("cpu"))
PADDING = {"labels": -100, "input_ids": 1}


def padded(rows, *, left=False, width=None):
    """What a collator makes of rows of one dimension each; labels of a class are stacked."""
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if values[0].ndim != 1:
            batch[name] = torch.stack(values)
            continue
        longest = width or max(map(len, values))
        fill = [v.new_full((longest - len(v),), PADDING.get(name, 0)) for v in values]
        pairs = zip(values, fill, strict=True)
        batch[name] = torch.stack([torch.cat((f, v) if left else (v, f)) for v, f in pairs])
    return batch


def rows_of(name, lengths):
    return [{key: value[0] for key, value in MAKERS[name][1]([length]).items()} for length in lengths]


# Digests


def test_a_row_has_one_digest_whatever_its_padding_and_company():
    one, two, three = (text([n]) for n in (5, 8, 3))
    rows = [{key: value[0] for key, value in batch.items()} for batch in (one, two, three)]
    alone = [row_digests(padded([row]))[0] for row in rows]
    assert len(set(alone)) == 3
    assert all(len(digest) == 16 for digest in alone)
    assert row_digests(padded(rows)) == alone
    assert row_digests(padded(rows[::-1], width=20)) == alone[::-1]
    assert row_digests(padded(rows, left=True)) == alone


def test_a_changed_token_a_longer_row_and_a_hole_in_the_mask_are_other_rows():
    row = {key: value[0] for key, value in text([6]).items()}
    own = row_digests(padded([row]))[0]
    changed = {**row, "input_ids": row["input_ids"].clone()}
    changed["input_ids"][3] += 1
    holed = {**row, "attention_mask": torch.tensor([1, 1, 0, 1, 1, 1])}
    longer = {"input_ids": torch.cat([row["input_ids"], torch.tensor([1])]), "attention_mask": torch.ones(7).long()}
    typed = {**row, "token_type_ids": torch.zeros(6).long()}
    others = [row_digests(padded([r]))[0] for r in (changed, holed, longer, typed)]
    assert len({own, *others}) == 5


def test_labels_matter_where_they_are_inputs():
    batch = MAKERS["t5"][1]([7, 5])
    other = {**batch, "labels": batch["labels"] + (batch["labels"] > 0)}
    assert row_digests(batch) == row_digests(other)
    assert row_digests(batch, with_labels=True) != row_digests(other, with_labels=True)
    wider = {**batch, "labels": torch.nn.functional.pad(batch["labels"], (0, 4), value=-100)}
    assert row_digests(batch, with_labels=True) == row_digests(wider, with_labels=True)


def test_answers_as_wide_as_their_texts_are_told_apart_to_the_end():
    texts = text([3, 3])
    labels = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 4]])
    same = {name: value[:1].expand(2, -1) for name, value in texts.items()}
    wide = {name: torch.nn.functional.pad(value, (0, 2)) for name, value in same.items()}
    one, other = row_digests({**wide, "labels": labels}, with_labels=True)
    assert one != other
    # As in a batch in which they are not equally wide.
    assert row_digests({**same, "labels": labels}, with_labels=True) == [one, other]
    moved = torch.tensor([[-100, 5, 6], [5, 6, -100]])
    assert len(set(row_digests({**same, "labels": moved}, with_labels=True))) == 2
    left = {name: torch.nn.functional.pad(value, (4, 0)) for name, value in same.items()}
    padded_left = torch.nn.functional.pad(moved, (4, 0), value=-100)
    assert row_digests({**left, "labels": padded_left}, with_labels=True) == row_digests(
        {**same, "labels": moved}, with_labels=True
    )


def test_rows_that_are_masked_whole_are_told_apart():
    batch = {"input_ids": torch.tensor([[1, 2, 3], [1, 2, 4]]), "attention_mask": torch.zeros(2, 3)}
    assert len(set(row_digests(batch))) == 2


def test_pixels_count_by_value_and_by_type():
    pixels = torch.randn(2, 3, 4, 4)
    digests = row_digests({"pixel_values": pixels})
    half = row_digests({"pixel_values": pixels.bfloat16()})
    assert len({*digests, *half}) == 4
    assert row_digests({"pixel_values": pixels.bfloat16()}) == half
    assert row_digests({"pixel_values": pixels.transpose(2, 3)}) != digests
    assert row_digests({"pixel_values": pixels[1:]}) == digests[1:]


def test_pixels_packed_one_image_behind_another_are_told_apart_by_their_grid():
    grid = torch.tensor([[1, 2, 4], [1, 2, 2]])
    pixels = torch.randn(12, 6)
    both = {**text([5, 5]), "image_grid_thw": grid, "pixel_values": pixels}
    first = {**{k: v[:1] for k, v in both.items()}, "pixel_values": pixels[:8]}
    second = {**{k: v[1:] for k, v in both.items()}, "pixel_values": pixels[8:]}
    assert row_digests(both) == [*row_digests(first), *row_digests(second)]
    moved = {**both, "pixel_values": pixels + torch.eye(12, 6)[:, :1] * 0 + (torch.arange(12) == 11)[:, None]}
    assert row_digests(moved)[0] == row_digests(both)[0]
    assert row_digests(moved)[1] != row_digests(both)[1]


def test_a_batch_without_an_entry_for_each_row_has_no_digests():
    with pytest.raises(ValueError, match=r"one entry a row, but got the shapes .*\(2, 5\).*\(7, 6\)"):
        row_digests({**text([5, 5]), "pixel_values": torch.randn(7, 6)})
    with pytest.raises(ValueError, match="one entry a row"):
        row_digests({"labels": torch.ones(2)})


# Where rows lie


def test_spans_are_read_off_the_masks_and_labels():
    batch = {
        "attention_mask": torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]]),
        "labels": torch.tensor([[-100, 4, -100, 5, -100], [3, 4, 5, 6, -100]]),
    }
    assert row_spans(batch) == {"tokens": Span((0, 1), (2, 3), 4), "targets": Span((0, 0), (4, 4), 5)}
    batch["decoder_attention_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert row_spans(batch)["targets"] == Span((0, 0), (3, 1), 3)
    # Labels beside each token may be those of the tokens; if they lie where no token is, they are answers.
    assert list(row_spans({"attention_mask": torch.ones(2, 5), "labels": batch["labels"]})) == ["tokens", "targets"]
    left = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    assert list(row_spans({"attention_mask": left, "labels": left * 105 - 100})) == ["tokens", "targets"]
    shorter = {"attention_mask": torch.tensor([[0, 1, 1, 0, 0], [1, 1, 0, 0, 0]]), "labels": batch["labels"]}
    spans = row_spans(shorter)
    assert list(spans) == ["targets", "tokens"]
    assert span_along("both", spans) == Span((0, 0), (4, 4), 5)
    assert span_along("tokens", spans) == Span((1, 0), (2, 2), 5)
    assert span_along("both", row_spans({**shorter, "labels": torch.tensor([0, 1])})) is None
    assert span_along(None, spans) is None
    assert row_spans({"pixel_values": torch.ones(2, 3), "labels": torch.tensor([0, 1])}) == {}
    # Of a row that is masked whole all counts, as it attends to padding.
    assert row_spans({"attention_mask": torch.zeros(1, 3)}) == {"tokens": Span((0,), (3,), 3)}
    assert row_spans({"labels": torch.full((1, 3), -100)}) == {"targets": Span((0,), (0,), 3)}


# From batches to rows and back

ADDRESSES = tuple(Address("block", False, leaf) for leaf in range(3))
CUT = Cut("block", ("below",), ADDRESSES)


def test_rows_are_split_without_padding_and_joined_where_they_belong():
    batches = [text([3]), text([5]), text([4, 2])]
    passed = [
        {
            ADDRESSES[0]: torch.randn(len(b["input_ids"]), b["input_ids"].shape[1], 2),
            ADDRESSES[1]: torch.randn(len(b["input_ids"]), 7),
            ADDRESSES[2]: torch.randn(len(b["input_ids"]), 2, b["input_ids"].shape[1]),
        }
        for b in batches
    ]
    parts = make_parts(CUT, passed, batches)
    assert {(part.axis, part.slots) for part in parts} == {
        ("tokens", (Slot((None, 2), torch.float32), Slot((2, None), torch.float32))),
        (None, (Slot((7,), torch.float32),)),
    }
    tokens = next(part for part in parts if part.axis)
    entries = split_rows(tokens, passed[2], row_spans(batches[2]))
    assert [[tuple(t.shape) for t in entry] for entry in entries] == [[(4, 2), (2, 4)], [(2, 2), (2, 2)]]
    joined = [torch.cat([entry[0] for entry in entries]), torch.cat([entry[1] for entry in entries], 1)]
    left = {"tokens": Span((2, 4), (4, 2), 6)}
    back = join_rows(tokens, joined, [4, 2], left)
    hidden = passed[2][ADDRESSES[0]]
    assert torch.equal(back[ADDRESSES[0]][0], torch.cat([torch.zeros(2, 2), hidden[0]]))
    assert torch.equal(back[ADDRESSES[0]][1], torch.cat([torch.zeros(4, 2), hidden[1, :2]]))
    assert torch.equal(back[ADDRESSES[2]][0, :, 2:], passed[2][ADDRESSES[2]][0])
    with pytest.raises(ValueError, match=r"are \(4, 2\) long, but those stored \(4, 3\)"):
        join_rows(tokens, joined, [4, 3], left)


def test_what_has_a_length_of_its_own_is_padded_to_the_longest():
    part = Part("own", ADDRESSES[:1], (Slot((None, 2), torch.float32),))
    rows = torch.arange(10.0).reshape(5, 2)
    back = join_rows(part, [rows], [3, 2], {"tokens": Span((0, 0), (9, 9), 9)})[ADDRESSES[0]]
    assert back.shape == (2, 3, 2)
    assert torch.equal(back[1], torch.tensor([[6.0, 7.0], [8.0, 9.0], [0.0, 0.0]]))


def test_two_lengths_of_their_own_are_two_parts():
    batches = [images([1]), images([1])]
    passed = [
        {ADDRESSES[0]: torch.ones(1, n, 4), ADDRESSES[1]: torch.ones(1, 2 * n, 4), ADDRESSES[2]: torch.ones(1, n)}
        for n in (3, 5)
    ]
    parts = make_parts(CUT, passed, batches)
    assert [(part.axis, part.addresses) for part in parts] == [
        ("own", (ADDRESSES[0], ADDRESSES[2])),
        ("own", (ADDRESSES[1],)),
    ]


# The proof


@pytest.mark.parametrize(
    ("name", "low", "kinds"),
    [
        ("bert", 2, [("tokens", [(None, 16)])]),
        # Its pooler is given the first token alone.
        ("bert", -1, [(None, [(16,)])]),
        ("roberta", 2, [("tokens", [(None, 16)])]),
        ("llama", 2, [("tokens", [(None, 16)])]),
        ("gpt2", 2, [("tokens", [(None, 16)])]),
        ("t5", -1, [("targets", [(None, 16)]), ("tokens", [(None, 16)])]),
        ("bart", -1, [("targets", [(None, 16)]), ("tokens", [(None, 16)])]),
        ("vit", 2, [(None, [(17, 16)])]),
        ("vit", -1, [(None, [(16,)])]),
        ("resnet", 3, [(None, [(12, 4, 4)])]),
        ("wav2vec2", 2, [("own", [(None, 16)])]),
        ("whisper", -1, [("targets", [(None, 16)]), (None, [(20, 16)])]),
    ],
)
def test_rows_stored_alone_give_the_same_in_a_padded_batch(name, low, kinds):
    model, _, cut = prefix(name, low)
    torch.manual_seed(7)
    proof = prove_storage(model, cut, rows_of(name, [5, 9, 13]), padded, CPU, "float16")
    assert [(part.axis, [slot.shape for slot in part.slots]) for part in proof.parts] == kinds
    # Half a unit in the last place of float16 is the most, for the worst of values: 2 ** -11.
    assert 2**-14 < proof.error < 2**-11
    assert prove_storage(model, cut, rows_of(name, [5, 9, 13]), padded, CPU, "float32").error == 0


def test_the_proof_tells_mean_lengths_and_leaves_the_model_as_it_was():
    model, _, cut = prefix("bert", 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    proof = prove_storage(model, cut, rows_of("bert", [5, 9, 13]), padded, CPU, "float16")
    assert proof.tokens == (9.0,)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_a_text_model_takes_left_padding_only_where_its_positions_do():
    """GPT-2 counts positions from the left edge, padding included."""
    left = lambda rows: padded(rows, left=True)  # noqa: E731
    model, _, cut = prefix("gpt2", 2)
    with pytest.raises(CannotCacheError, match="depend on how a row is padded or on its companions"):
        prove_storage(model, cut, rows_of("gpt2", [5, 9, 13]), left, CPU, "float16")
    assert prove_storage(model, cut, rows_of("gpt2", [9, 9, 9]), left, CPU, "float16").error < 2**-11


def test_a_feature_extractor_that_normalizes_over_the_padding_is_refused():
    torch.manual_seed(3)
    model = wav2vec2(feat_extract_norm="group").train()
    cut = find_cut(model, upper(model, 2), [waves([9, 12]), waves([14, 10, 11])])
    rows = [{key: value[0] for key, value in waves([n]).items()} for n in (9, 12, 16)]
    with pytest.raises(CannotCacheError, match="depend on how a row is padded"):
        prove_storage(model, cut, rows, padded, CPU, "float16")
    alike = [{key: value[0] for key, value in waves([12]).items()} for _ in range(3)]
    assert prove_storage(model, cut, alike, padded, CPU, "float16").parts


def test_a_model_that_mixes_rows_is_refused():
    """Each row is moved by the mean over its companions."""

    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.below, self.above = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, x):
            hidden = self.below(x)
            return {"logits": self.above(hidden - hidden.mean(0))}

    rows = [{"x": torch.randn(4)} for _ in range(3)]
    learning = frozenset({"above.weight", "above.bias"})
    model = Mixing()
    cut = find_cut(model, learning, [padded(rows), padded(rows[:2])])
    with pytest.raises(CannotCacheError, match="or on its companions"):
        prove_storage(model, cut, rows, padded, CPU, "float32")


def test_values_that_do_not_fit_the_storage_are_refused():
    model, _, cut = prefix("vit", -1)
    with torch.no_grad():
        model.vit.layernorm.weight.fill_(1e6)
    rows = rows_of("vit", [1, 1, 1])
    with pytest.raises(CannotCacheError, match=r"must fit into float16, but the largest is .*bfloat16"):
        prove_storage(model, cut, rows, padded, CPU, "float16")
    assert prove_storage(model, cut, rows, padded, CPU, "bfloat16").error < 2**-8


def test_values_too_small_for_the_storage_are_refused_for_their_rounding():
    """Below 6e-8, the least that float16 has beside 0, it keeps nothing."""
    model, _, cut = prefix("vit", -1)
    with torch.no_grad():
        model.vit.layernorm.weight.fill_(1e-7)
    rows = rows_of("vit", [1, 1, 1])
    with pytest.raises(CannotCacheError, match=r"float16 rounds the activations by .*e-01, more than 9.8e-04"):
        prove_storage(model, cut, rows, padded, CPU, "float16")
    assert prove_storage(model, cut, rows, padded, CPU, "int8").error < 2**-4
