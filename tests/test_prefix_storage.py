import math

import pytest
import torch

from hf_transfer_plugin.prefix_cache.sizes import size_words
from hf_transfer_plugin.prefix_cache.storage import (
    STORAGE,
    Slot,
    bytes_per_row,
    decode,
    encode,
    tokens_in,
)

HIDDEN = Slot((None, 8), torch.float32)
# Every way in which tokens and types can lie: first, last, in the middle, nowhere; a single number; bits and counts.
MIXED = (
    HIDDEN,
    Slot((3, None), torch.float32),
    Slot((2, None, 4), torch.float32),
    Slot((None,), torch.bool),
    Slot((None,), torch.float32),
    Slot((5,), torch.int64),
    Slot((), torch.float32),
    Slot((2, 6), torch.float64),
)


def row(tokens, slots=MIXED):
    made = []
    for slot in slots:
        values = torch.randn(slot.sized(tokens)) * 3
        made.append(values > 0 if slot.dtype == torch.bool else (values * 10).to(slot.dtype))
    return made


def bound(values, storage):
    """The most that a value may be off: half a unit in the last place, or half a step of its vector."""
    if storage == "int8":
        return values.abs().amax(-1, keepdim=True) / 127 / 2 * (1 + 1e-5) if values.dim() else values.abs() * 1e-6
    return values.abs() * {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-24}[storage] + 1e-7


# Values


@pytest.mark.parametrize("storage", STORAGE)
def test_every_storage_gives_back_what_it_got_within_its_bound(storage):
    rows = [row(tokens) for tokens in (3, 1, 7)]
    tensors, lengths = decode([encode(one, MIXED, storage) for one in rows], MIXED, storage)
    assert lengths == [3, 1, 7]
    for number, slot in enumerate(MIXED):
        parts = [one[number] for one in rows]
        wanted = torch.stack(parts) if slot.axis is None else torch.cat(parts, slot.axis)
        got = tensors[number]
        assert got.shape == wanted.shape
        if not slot.dtype.is_floating_point:
            assert got.dtype == slot.dtype
            assert torch.equal(got, wanted)
            continue
        assert got.dtype == (torch.float32 if storage == "int8" else getattr(torch, storage))
        bounds = [bound(part.float(), storage).expand(part.shape) for part in parts]
        allowed = torch.stack(bounds) if slot.axis is None else torch.cat(bounds, slot.axis)
        assert ((got.double() - wanted.double()).abs() <= allowed).all()


def test_the_bounds_are_reached_so_that_they_are_worth_asserting():
    values = torch.randn(500, 8)
    for storage in ("float16", "bfloat16", "int8"):
        (got,), _ = decode([encode([values], (HIDDEN,), storage)], (HIDDEN,), storage)
        assert ((got.float() - values).abs() > bound(values, storage) * 0.9).any()


def test_float32_is_exact():
    values = torch.randn(6, 8)
    (got,), _ = decode([encode([values], (HIDDEN,), "float32")], (HIDDEN,), "float32")
    assert torch.equal(got, values)


def test_int8_by_hand():
    slot = Slot((None, 3), torch.float32)
    # s = 1 / 127; x / s = 127, -63.5, 31.75, so q = 127, -64 (half to even), 32. The zeros have no scale.
    values = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]])
    content = encode([values], (slot,), "int8")
    assert len(content) == 2 * 4 + 2 * 3
    assert list(content[8:]) == [127, 256 - 64, 32, 0, 0, 0]
    (got,), _ = decode([content], (slot,), "int8")
    assert got[0].tolist() == pytest.approx([1.0, -64 / 127, 32 / 127])
    assert got[1].tolist() == [0, 0, 0]


def test_float16_by_hand():
    # 1 + 2^-11 lies half-way between 1 and 1 + 2^-10, and goes to the even one.
    content = encode([torch.tensor([1 + 2**-11, 1 + 3 * 2**-11])], (Slot((2,), torch.float32),), "float16")
    assert content == bytes([0x00, 0x3C, 0x02, 0x3C])


@pytest.mark.parametrize("values", [1e-45, 3e-44, 1e-40, 3e38])
def test_int8_of_the_smallest_and_the_largest_numbers(values):
    content = encode([torch.full((1, 8), values)], (HIDDEN,), "int8")
    (got,), _ = decode([content], (HIDDEN,), "int8")
    assert got.isfinite().all()
    assert (got - values).abs().max() <= max(values * 0.01, 2e-43)


def test_what_is_read_is_a_copy_and_may_be_changed():
    content = bytearray(encode([torch.ones(2, 8)], (HIDDEN,), "float32"))
    (got,), _ = decode([content], (HIDDEN,), "float32")
    got.add_(1)
    assert bytes(content) == encode([torch.ones(2, 8)], (HIDDEN,), "float32")


@pytest.mark.parametrize("storage", STORAGE)
def test_strided_and_learning_tensors_are_stored_by_value(storage):
    values = torch.randn(8, 4, requires_grad=True).t()
    assert encode([values], (HIDDEN,), storage) == encode([values.detach().clone().contiguous()], (HIDDEN,), storage)


@pytest.mark.parametrize("storage", STORAGE)
def test_rows_without_tokens_and_no_rows(storage):
    rows = [row(0), row(2)]
    tensors, lengths = decode([encode(one, MIXED, storage) for one in rows], MIXED, storage)
    assert lengths == [0, 2]
    assert tensors[1].shape == (3, 2)
    tensors, lengths = decode([], MIXED, storage)
    assert lengths == []
    assert [len(tensor) for tensor in tensors] == [0, 3, 2, 0, 0, 0, 0, 0]


def test_a_row_of_another_float_type_is_stored_all_the_same():
    half, whole = (
        encode([torch.ones(2, 8, dtype=dtype)], (HIDDEN,), "float16") for dtype in (torch.half, torch.float)
    )
    assert half == whole


# Sizes


def test_bytes_per_row_by_hand():
    slots = (Slot((None, 384), torch.float32),)
    assert bytes_per_row(slots, "float16", 30) == bytes_per_row(slots, "bfloat16", 30) == 30 * 384 * 2 == 23_040
    assert bytes_per_row(slots, "float32", 30) == 46_080
    assert bytes_per_row(slots, "int8", 30) == 30 * (384 + 4) == 11_640
    assert bytes_per_row([Slot((384,), torch.float16), Slot((2,), torch.int64)], "int8", 30) == 388 + 16


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_bytes_per_row_is_what_a_row_takes(storage, tokens):
    content = encode(row(tokens), MIXED, storage)
    assert len(content) == bytes_per_row(MIXED, storage, tokens)
    assert tokens_in(len(content), MIXED, storage) == tokens


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (23_040, "23.0 kB"),
        (2_000_000, "2.0 MB"),
        (1_500 * 10**9, "1.5 TB"),
    ],
)
def test_sizes_as_people_write_them(count, words):
    assert size_words(count) == words


def test_a_slot_as_json_values():
    assert HIDDEN.to_dict() == {"shape": [None, 8], "dtype": "float32"}
    assert [Slot.from_dict(slot.to_dict()) for slot in MIXED] == list(MIXED)


# Refusals


@pytest.mark.parametrize(
    ("value", "storage", "advice"),
    [
        (1e5, "float16", 'the largest is 1e\\+05. Use `storage="bfloat16"`'),
        (3.4e38, "float16", 'the largest is 3.4e\\+38. Use `storage="float32"`'),
        (3.4e38, "bfloat16", 'Use `storage="float32"`'),
        (math.inf, "int8", 'fit into int8, but the largest is inf. Use `storage="bfloat16"`'),
    ],
)
def test_values_that_do_not_fit_are_refused(value, storage, advice):
    values = torch.zeros(2, 8)
    values[1, 3] = value
    with pytest.raises(ValueError, match=advice):
        encode([values], (HIDDEN,), storage)


def test_no_storage_holds_the_largest_64_bit_floats():
    with pytest.raises(ValueError, match=r"fit into float32, but the largest is 1e\+300. No storage holds it"):
        encode([torch.full((2, 8), 1e300, dtype=torch.float64)], (HIDDEN,), "float32")


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "float32"])
def test_infinities_of_the_model_itself_are_values(storage):
    values = torch.zeros(1, 8)
    values[0, :2] = torch.tensor([-math.inf, math.nan])
    (got,), _ = decode([encode([values], (HIDDEN,), storage)], (HIDDEN,), storage)
    assert got[0, 0] == -math.inf
    assert got[0, 1].isnan()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([], "must have 2 tensors, one for each slot, but got 0"),
        ([torch.zeros(4, 9), torch.zeros(4).bool()], r"slot 0 must .* \(None, 8\) with 4 tokens, but got \(4, 9\)"),
        ([torch.zeros(1, 4, 8), torch.zeros(4).bool()], "slot 0 must have the shape .* without padding"),
        ([torch.zeros(4, 8), torch.zeros(5).bool()], r"slot 1 must .* \(None,\) with 4 tokens, but got \(5,\)"),
        ([torch.zeros(4, 8), torch.zeros(4)], "slot 1 must be of type torch.bool, but got torch.float32"),
        (
            [torch.zeros(4, 8).long(), torch.zeros(4).bool()],
            "slot 0 must be of type torch.float32, but .* torch.int64",
        ),
    ],
)
def test_rows_that_are_not_what_the_slots_say_are_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        encode(tensors, (HIDDEN, Slot((None,), torch.bool)), "float16")


def test_slots_of_one_row_must_have_the_same_tokens():
    with pytest.raises(ValueError, match=r"slot 1 must have the shape \(None, 2\) with 4 tokens, but got \(5, 2\)"):
        encode([torch.zeros(4, 8), torch.zeros(5, 2)], (HIDDEN, Slot((None, 2), torch.float32)), "float16")


@pytest.mark.parametrize("shape", [(None, None), (0, 3), (None, -1)])
def test_slots_must_have_sizes(shape):
    with pytest.raises(ValueError, match="must hold sizes of at least 1, and `None`, the row's tokens, at most once"):
        Slot(shape, torch.float32)


def test_complex_slots_are_refused():
    with pytest.raises(ValueError, match="must be a float, an integer or a boolean, but got torch.complex64"):
        Slot((3,), torch.complex64)


@pytest.mark.parametrize(
    "work",
    [lambda s: encode([], (), s), lambda s: decode([], (HIDDEN,), s), lambda s: bytes_per_row([HIDDEN], s, 1)],
    ids=["encode", "decode", "bytes_per_row"],
)
def test_there_is_no_other_storage(work):
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, float32, int8, but got 'int4'"):
        work("int4")


def test_bytes_of_no_row_are_refused():
    with pytest.raises(ValueError, match="A row in float16 must have 0 bytes and 16 for each token, but got 17 bytes"):
        decode([bytes(17)], (HIDDEN,), "float16")
    with pytest.raises(ValueError, match="A row in float16 must have 6 bytes, but got 5 bytes"):
        decode([bytes(5)], (Slot((3,), torch.float32),), "float16")
