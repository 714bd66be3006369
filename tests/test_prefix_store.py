import json
import logging
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader
from xxhash import xxh3_128_digest

from hf_transfer_plugin.prefix_cache import folders
from hf_transfer_plugin.prefix_cache.segments import RECORD, Segment, SegmentWriter
from hf_transfer_plugin.prefix_cache.storage import Slot
from hf_transfer_plugin.prefix_cache.store import (
    ActivationStore,
    PrefixCacheBudget,
    clear_stores,
    default_root,
    filling,
    list_stores,
    store_folder,
)

SLOTS = (Slot((None, 4), torch.float32), Slot((2,), torch.float32))
DESCRIPTION = {"model": "tiny", "cut": "layer.2", "weights": "abc"}
FORK = multiprocessing.get_context("fork")


def key(number):
    return xxh3_128_digest(str(number).encode())


def entry(number):
    """Activations that tell to which row they belong, of as many tokens as the row's number says."""
    return [torch.full((number % 3 + 1, 4), float(number)), torch.tensor([number, -number], dtype=torch.float32)]


def keys(numbers):
    return [key(number) for number in numbers]


def fill(store, numbers):
    return store.write(keys(numbers), [entry(number) for number in numbers])


def assert_holds(store, numbers):
    (tokens, pooled), lengths = store.read(keys(numbers))
    wanted = [entry(number) for number in numbers]
    assert lengths == [len(one[0]) for one in wanted]
    assert torch.equal(tokens, torch.cat([one[0] for one in wanted]))
    assert torch.equal(pooled, torch.stack([one[1] for one in wanted]))


@pytest.fixture
def folder(tmp_path):
    return store_folder(tmp_path / "root", DESCRIPTION)


@pytest.fixture
def make(folder):
    """Opens the store as another process would."""

    def run(**changes):
        settings = {"description": DESCRIPTION, "slots": SLOTS, "storage": "float32", **changes}
        return ActivationStore(folder, **settings)

    return run


def files(folder, ending):
    return sorted(folder.glob(f"*.{ending}"))


def damage(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


# Reading and writing


def test_rows_come_back_in_the_order_in_which_they_are_asked(make):
    store = make()
    assert fill(store, range(10)) == 10
    assert_holds(store, [7, 0, 7, 3])
    assert len(store) == 10
    assert_holds(make(), [9, 1])


def test_nothing_is_made_on_the_disk_before_there_is_a_row(make, folder):
    store = make()
    assert store.missing(keys([1, 2])) == [0, 1]
    assert store.read(keys([1])) is None
    assert (len(store), store.nbytes) == (0, 0)
    assert fill(store, []) == 0
    store.close()
    assert not folder.parent.exists()


def test_missing_tells_positions_and_one_missing_row_is_no_batch(make):
    store = make()
    fill(store, [1, 3])
    assert store.missing(keys([0, 1, 2, 3, 0])) == [0, 2, 4]
    assert store.read(keys([1, 2])) is None


def test_what_is_there_is_not_written_again(make):
    store = make()
    fill(store, [1, 2])
    before = store.nbytes
    assert fill(store, [2, 3, 3]) == 1
    assert store.nbytes == before + 1 * 16 + 2 * 4 + RECORD.itemsize
    assert fill(make(), [1, 2, 3]) == 0


def test_the_size_is_that_of_the_files(make, folder):
    store = make()
    fill(store, range(5))
    on_disk = sum(path.stat().st_size for path in folder.iterdir() if path.name != "meta.json")
    assert store.nbytes == on_disk == sum((n % 3 + 1) * 16 + 8 + 44 for n in range(5))


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_every_storage_can_be_opened_again(make, storage):
    fill(make(storage=storage), range(4))
    (tokens, pooled), lengths = make(storage=storage).read(keys([3, 1]))
    assert lengths == [1, 2]
    assert tokens[:, 0].tolist() == [3, 1, 1]
    assert pooled[:, 1].tolist() == [-3, -1]


def test_after_close_and_flush_all_goes_on(make):
    store = make()
    fill(store, [1])
    store.flush()
    store.close()
    store.close()
    fill(store, [2])
    assert_holds(store, [1, 2])


def test_clear_leaves_nothing_and_the_store_can_be_filled_again(make, folder):
    store = make()
    fill(store, [1])
    store.clear()
    assert not folder.exists()
    assert store.missing(keys([1])) == [0]
    fill(store, [1])
    assert_holds(store, [1])


def test_a_key_must_be_a_digest(make):
    with pytest.raises(ValueError, match="A key must be a digest of 16 bytes, but got 3 bytes"):
        make().write([b"abc"], [entry(1)])


def test_values_that_do_not_fit_are_refused_before_anything_is_written(make):
    store = make(storage="float16")
    with pytest.raises(ValueError, match='Use `storage="bfloat16"`'):
        fill(store, [1, 10**6])
    assert (len(store), store.nbytes) == (0, 0)


# Several processes


def test_rows_of_another_writer_are_seen_without_opening_anew(make, folder):
    one, other = make(), make()
    assert one.missing(keys([1])) == [0]
    fill(other, [1])
    assert_holds(one, [1])
    fill(one, [2])
    fill(other, [3])
    assert other.missing(keys([1, 2, 3])) == []
    one.refresh()
    assert len(one) == 3
    assert len(files(folder, "data")) == 2


def _write_many(folder, numbers, barrier):
    store = ActivationStore(folder, DESCRIPTION, SLOTS, "float32")
    barrier.wait(10)
    for number in numbers:
        fill(store, [number])
    os._exit(0)


def test_two_processes_write_at_once_and_never_the_same_file(make, folder):
    barrier = FORK.Barrier(2)
    orders = (range(80), range(99, 19, -1))
    writers = [FORK.Process(target=_write_many, args=(folder, numbers, barrier)) for numbers in orders]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    assert [writer.exitcode for writer in writers] == [0, 0]
    store = make()
    assert len(store) == 100
    assert_holds(store, range(100))
    assert len(files(folder, "index")) == len(files(folder, "data")) == 2


def _write_on(folder):
    store = ActivationStore(folder, DESCRIPTION, SLOTS, "float32")
    for number in range(10**6):
        fill(store, [2 * number, 2 * number + 1])


def test_a_killed_writer_leaves_only_whole_rows(make, folder):
    writer = FORK.Process(target=_write_on, args=(folder,))
    writer.start()
    deadline = time.monotonic() + 10
    while not any(path.stat().st_size > 50 * RECORD.itemsize for path in folder.glob("*.index")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(10)
    store = make()
    assert len(store) > 50
    assert_holds(store, range(len(store)))
    more = len(store) + 10
    fill(store, range(more))
    assert_holds(make(), range(more))


def test_a_forked_process_writes_files_of_its_own(make, folder):
    store = make()
    fill(store, [1])

    def work():
        fill(store, [2])
        store.close()
        os._exit(0)

    child = FORK.Process(target=work)
    child.start()
    child.join(10)
    assert child.exitcode == 0
    fill(store, [3])
    assert len(files(folder, "data")) == 2
    assert_holds(store, [1, 2, 3])


def test_a_forked_process_does_not_wait_for_a_lock_of_its_parent(make):
    store = make()
    fill(store, [1])

    def work():
        fill(store, [2])
        os._exit(0)

    held, done = threading.Event(), threading.Event()

    def hold():
        with store._lock:
            held.set()
            done.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    child = FORK.Process(target=work)
    child.start()
    child.join(5)
    done.set()
    holder.join()
    code = child.exitcode
    child.kill()
    assert code == 0


class Rows:
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return 6

    def __getitem__(self, number):
        (tokens, pooled), lengths = self.store.read([key(number)])
        return lengths[0], float(tokens.sum()), pooled[0].tolist()


@pytest.mark.slow
def test_a_spawned_worker_of_a_data_loader_reads_it(make):
    store = make()
    fill(store, range(6))
    loader = DataLoader(
        Rows(store), batch_size=None, num_workers=1, multiprocessing_context="spawn", collate_fn=as_it_is
    )
    assert list(loader) == [(n % 3 + 1, 4.0 * n * (n % 3 + 1), [n, -n]) for n in range(6)]


def as_it_is(row):
    return row


def test_a_pickle_holds_paths_and_no_rows(make, folder):
    store = make(budget=10**6)
    fill(store, range(50))
    content = pickle.dumps(store)
    assert len(content) < 1000
    copy = pickle.loads(content)
    assert (copy.folder, copy.slots, copy.storage, copy.budget) == (folder, SLOTS, "float32", 10**6)
    assert_holds(copy, range(50))


# Damage


def test_a_damaged_row_is_missing_told_once_and_made_again(make, folder, caplog):
    fill(make(), range(6))
    [data] = files(folder, "data")
    # Rows of 1, 2 and 3 tokens take 24, 40 and 56 bytes: row 3 begins at 120, row 4 at 144.
    damage(data, 125)
    damage(data, 150)
    store = make()
    assert store.missing(keys(range(6))) == []
    assert store.read(keys(range(6))) is None
    assert store.missing(keys(range(6))) == [3, 4]
    assert_holds(store, [0, 1, 2, 5])
    assert store.read(keys([4])) is None
    [told] = [one.getMessage() for one in caplog.records]
    assert str(data) in told
    assert key(3).hex() in told
    assert fill(store, range(6)) == 2
    assert_holds(store, range(6))
    assert_holds(make(), range(6))
    assert len(caplog.records) == 1


def test_a_damaged_row_falls_back_to_another_writers(make, folder, caplog):
    one, other = make(), make()
    assert len(one) == len(other) == 0
    fill(one, [5])
    fill(other, [5, 6])
    newer = files(folder, "data")[1]
    damage(newer, 0)
    store = make()
    assert len(store) == 2
    assert_holds(store, [5, 6])
    assert str(newer) in caplog.text


@pytest.mark.parametrize("extra", [0, 1, RECORD.itemsize - 1])
def test_a_cut_off_index_keeps_its_whole_records(make, folder, extra):
    fill(make(), range(10))
    [index] = files(folder, "index")
    cut(index, 4 * RECORD.itemsize + extra)
    store = make()
    assert store.missing(keys(range(10))) == [4, 5, 6, 7, 8, 9]
    assert_holds(store, range(4))
    assert fill(store, range(10)) == 6
    assert_holds(make(), range(10))


@pytest.mark.parametrize(("size", "left"), [(0, 0), (23, 0), (24, 1), (119, 2), (120, 3), (10**6, 6)])
def test_records_past_the_end_of_the_data_are_ignored(make, folder, size, left, caplog):
    fill(make(), range(6))
    cut(files(folder, "data")[0], size)
    store = make()
    assert store.missing(keys(range(6))) == list(range(left, 6))
    assert fill(store, range(6)) == 6 - left
    assert_holds(make(), range(6))
    assert not caplog.records


def test_data_without_a_record_is_ignored(make, folder):
    fill(make(), [1])
    [data] = files(folder, "data")
    data.write_bytes(data.read_bytes() + b"half a row")
    assert_holds(make(), [1])


@pytest.mark.parametrize("field", ["offset", "nbytes", "tokens", "checksum"])
def test_a_damaged_record_is_missing_whatever_it_says(make, folder, field):
    fill(make(), range(6))
    [index] = files(folder, "index")
    # The highest byte: as large as a number can become.
    damage_at = 2 * RECORD.itemsize + RECORD.fields[field][1] + RECORD.fields[field][0].itemsize - 1
    content = bytearray(index.read_bytes())
    content[damage_at] = 0xFF
    index.write_bytes(content)
    store = make()
    assert store.read(keys([2])) is None
    assert store.missing(keys(range(6))) == [2]
    fill(store, [2])
    assert_holds(make(), range(6))


def test_a_store_that_is_cleared_under_its_readers_is_filled_again(make, folder, caplog):
    store, mapped = make(), make()
    fill(store, [1, 2])
    assert_holds(mapped, [1])
    clear_stores(folder.parent)
    assert_holds(mapped, [1, 2])
    assert store.read(keys([1])) is None
    assert "is damaged or gone" in caplog.text
    assert fill(store, [1]) == 1
    assert_holds(store, [1])
    other = make()
    assert other.missing(keys([1, 2])) == [1]
    assert_holds(other, [1])


# Whose folder it is


def test_the_folder_is_named_by_its_description(tmp_path):
    folder = store_folder(tmp_path, {"b": [1, 2], "a": None})
    assert folder == store_folder(str(tmp_path), {"a": None, "b": (1, 2)})
    assert folder != store_folder(tmp_path, {"a": None, "b": [2, 1]})
    assert (folder.parent, len(folder.name)) == (tmp_path, 16)


def test_the_default_root(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TRANSFER_PLUGIN_CACHE", raising=False)
    assert default_root() == tmp_path / "assets" / "hf_transfer_plugin" / "prefix_cache"
    monkeypatch.setenv("HF_TRANSFER_PLUGIN_CACHE", "~/there")
    assert default_root() == default_root().home() / "there"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"description": {**DESCRIPTION, "weights": "xyz"}}, 'its description differ.*"weights":"xyz"'),
        (
            {"storage": "int8"},
            'its storage differ: expected "int8", got "float32". Remove it with `hf-transfer-plugin',
        ),
        ({"slots": SLOTS[:1]}, "its slots differ"),
        ({"slots": SLOTS[:1], "storage": "int8"}, "its slots and storage differ"),
    ],
)
def test_a_folder_with_other_activations_is_refused(make, changes, message):
    fill(make(), [1])
    with pytest.raises(ValueError, match=message):
        make(**changes)
    assert_holds(make(), [1])


def test_a_folder_that_became_anothers_is_refused_before_it_is_read_or_written(make):
    early, late = make(storage="int8"), make(storage="float16")
    fill(make(), [1])
    with pytest.raises(ValueError, match='its storage differ: expected "int8"'):
        early.missing(keys([1]))
    with pytest.raises(ValueError, match='its storage differ: expected "float16"'):
        fill(late, [1])
    assert_holds(make(), [1])


def _other_version(meta):
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 0}))


@pytest.mark.parametrize(
    "spoil",
    [_other_version, lambda meta: cut(meta, 40), lambda meta: meta.write_text("[]"), lambda meta: meta.unlink()],
    ids=["version", "cut", "list", "gone"],
)
def test_a_folder_that_cannot_be_understood_is_made_anew(make, folder, spoil, caplog):
    fill(make(), [1, 2])
    old = files(folder, "data")
    (folder / "notes.txt").write_text("mine")
    spoil(folder / "meta.json")
    store = make()
    assert store.missing(keys([1, 2])) == [0, 1]
    assert files(folder, "data") == old
    fill(store, [1])
    assert "It is made anew" in caplog.text
    assert_holds(make(), [1])
    assert make().missing(keys([2])) == [0]
    assert not set(old) & set(files(folder, "data"))
    assert (folder / "notes.txt").read_text() == "mine"


def test_there_is_no_other_storage(make):
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, float32, int8, but got 'int4'"):
        make(storage="int4")


# No room


def test_the_budget_is_never_passed(make, folder):
    row = 4 * 4 + 2 * 4 + RECORD.itemsize
    store = make(budget=3 * row)
    fill(store, [0, 3])
    with pytest.raises(PrefixCacheBudget, match="may take 204 B, but it has 136 B and needs 136 B more. Raise"):
        fill(store, [6, 9])
    assert (len(store), store.nbytes) == (2, 2 * row)
    assert fill(store, [0, 3, 6]) == 1
    with pytest.raises(PrefixCacheBudget, match="has 204 B and needs 68 B more"):
        fill(make(budget=3 * row), [9])
    assert_holds(store, [0, 3, 6])
    assert len(files(folder, "data")) == 1


def test_a_gigabyte_of_the_disk_is_left_to_others(make, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: usage(2**40, 0, 2**30 + 100))
    store = make()
    fill(store, [0])
    with pytest.raises(PrefixCacheBudget, match="needs 136 B more, but its disk has 1.1 GB free, of which 1.1 GB are"):
        fill(store, [3, 6])
    assert_holds(store, [0])


def test_a_disk_that_fills_up_amid_a_row_leaves_the_rows_before_it(make, folder):
    store = make()
    fill(store, [0, 1])
    [data] = files(folder, "data")
    before = data.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = torch.zeros(10_000, 4)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(PrefixCacheBudget, match=r"ran out of room \(File too large\); what it holds stays usable"):
            store.write([key("big")], [[big, torch.zeros(2)]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert data.stat().st_size == before
    assert_holds(store, [0, 1])
    assert store.missing([key("big")]) == [0]
    store.write([key("big")], [[big, torch.zeros(2)]])
    assert make().missing([key("big"), key(0)]) == []


def test_a_first_row_that_fails_leaves_no_files(make, folder):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = make()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(PrefixCacheBudget, match="ran out of room"):
            store.write([key("big")], [[torch.zeros(10_000, 4), torch.zeros(2)]])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in folder.iterdir()] == ["meta.json"]


@pytest.mark.parametrize("place", ["file", "file/beneath"])
def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    store = ActivationStore(tmp_path / place, DESCRIPTION, SLOTS, "float32")
    assert store.missing(keys([1])) == [0]
    message = r"needs a folder that it can write to, but got '.*' \((File exists|Not a directory)\). Name another"
    with pytest.raises(ValueError, match=message) as error:
        fill(store, [1])
    assert not isinstance(error.value, PrefixCacheBudget)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_no_lock_can_be_made_beneath_a_file(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="needs a folder that it can write to"), filling(tmp_path / "file" / "name"):
        pytest.fail("must not begin")


# One fills, the others wait


def _fill_slowly(folder, began):
    with filling(folder) as waited:
        began.set()
        time.sleep(0.3)
        fill(ActivationStore(folder, DESCRIPTION, SLOTS, "float32"), [1])
        os._exit(int(waited))


def test_a_second_filler_waits_says_so_and_finds_the_rows(make, folder, caplog):
    began = FORK.Event()
    other = FORK.Process(target=_fill_slowly, args=(folder, began))
    other.start()
    assert began.wait(10)
    with caplog.at_level(logging.WARNING), filling(folder) as waited:
        assert waited
        assert make().missing(keys([1])) == []
    other.join(10)
    assert other.exitcode == 0
    assert f"Another process fills the prefix cache in '{folder}'; this one waits until it is done" in caplog.text


def _hold(folder, began):
    with filling(folder):
        began.set()
        time.sleep(60)


def test_the_lock_of_a_killed_filler_is_free(folder, caplog):
    began = FORK.Event()
    other = FORK.Process(target=_hold, args=(folder, began))
    other.start()
    assert began.wait(10)
    os.kill(other.pid, signal.SIGKILL)
    other.join(10)
    with filling(folder) as waited:
        assert not waited
    assert not caplog.records


def test_the_lock_is_free_again_after_a_fault(folder):
    with pytest.raises(RuntimeError, match="amid"), filling(folder):
        raise RuntimeError("amid the filling")
    with filling(folder) as waited:
        assert not waited


# What there is


def test_stores_are_listed_with_what_they_are_last_used_first(make, folder, tmp_path):
    root = tmp_path / "root"
    assert list_stores(root) == []
    fill(make(), range(3))
    late = {**DESCRIPTION, "cut": "pooler"}
    other = ActivationStore(store_folder(root, late), late, SLOTS, "int8")
    fill(other, [1])
    os.utime(folder / "meta.json", (1, 1))
    found = list_stores(root)
    assert [(one.name, one.model, one.cut, one.storage, one.rows) for one in found] == [
        (other.folder.name, "tiny", "pooler", "int8", 1),
        (folder.name, "tiny", "layer.2", "float32", 3),
    ]
    assert [one.nbytes for one in found] == [other.nbytes, make().nbytes]
    assert found[1].last_used == 1
    make().missing(keys([1]))
    assert list_stores(root)[1].last_used == 1
    make().read(keys([1]))
    assert list_stores(root)[0].last_used > 1


def test_rows_of_two_writers_are_counted_once(make, folder):
    one, other = make(), make()
    assert len(one) == len(other) == 0
    fill(one, [1, 2])
    fill(other, [2, 3])
    assert list_stores(folder.parent)[0].rows == len(make()) == 3


def test_a_store_of_another_version_is_listed_and_cleared(make, folder):
    fill(make(), [1])
    _other_version(folder / "meta.json")
    [found] = list_stores(folder.parent)
    assert (found.rows, found.nbytes) == (0, 40 + RECORD.itemsize)
    clear_stores(folder.parent)
    assert not folder.exists()


def test_a_damaged_description_is_listed_without_rows(make, folder):
    fill(make(), [1])
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "slots": [{"shape": "?"}]}))
    assert list_stores(folder.parent)[0].rows == 0


def test_clear_touches_only_what_is_ours(make, folder):
    root = folder.parent
    fill(make(), [1])
    (folder / "notes.txt").write_text("mine")
    (root / "other").mkdir()
    (root / "other" / "meta.json").write_text('{"made_by": "somebody else"}')
    (root / "other" / "0000000000000000-1-00000000.data").write_text("theirs")
    assert [one.name for one in clear_stores(root)] == [folder.name]
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert len(list((root / "other").iterdir())) == 2
    assert clear_stores(root) == []


def test_clear_by_name(make, folder):
    fill(make(), [1])
    with pytest.raises(ValueError, match=f"There is no prefix cache 'nope' in '.*'; there are {folder.name}. Run"):
        clear_stores(folder.parent, [folder.name, "nope"])
    assert_holds(make(), [1])
    assert clear_stores(folder.parent, [folder.name])[0].rows == 1
    with pytest.raises(ValueError, match="there are none"):
        clear_stores(folder.parent, [folder.name])


def test_what_is_being_filled_is_not_cleared(make, folder):
    fill(make(), [1])
    with filling(folder), pytest.raises(ValueError, match="is being filled by another process. Wait for it or stop"):
        clear_stores(folder.parent)
    assert_holds(make(), [1])


# Files


def test_the_index_by_hand(tmp_path):
    writer = SegmentWriter(tmp_path)
    writer.append([b"k" * 16, b"l" * 16], [b"abc", b"de"], [3, 2])
    writer.append([b"m" * 16], [b"f"], [1])
    content = writer.path.with_name(f"{writer.path.name}.index").read_bytes()
    assert len(content) == 3 * (16 + 8 + 8 + 4 + 8)
    assert content[44:60] == b"l" * 16
    assert [int.from_bytes(content[44 + a : 44 + b], "little") for a, b in ((16, 24), (24, 32), (32, 36))] == [3, 2, 2]
    segment = Segment(writer.path)
    assert segment.new_records(0, 1)["offset"].tolist() == [0, 3, 5]
    assert not segment.grew
    assert bytes(segment.read(3, 3)) == b"def"
    writer.close()


def test_a_writer_that_wrote_nothing_leaves_nothing(tmp_path):
    writer = SegmentWriter(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    writer.close()
    assert list(tmp_path.iterdir()) == []
