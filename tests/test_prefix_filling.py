"""The fill: in which precision, how long it will take, who fills when, and under which weights."""

import logging
import multiprocessing
from dataclasses import replace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from hf_transfer_plugin import FrozenPrefixCache, attach, freeze_first
from hf_transfer_plugin.freezing import freeze_pattern
from hf_transfer_plugin.prefix_cache import fill_precision, filling
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError
from hf_transfer_plugin.prefix_cache.fill_precision import FillPrecision, measured_speedup, prove_fill
from hf_transfer_plugin.prefix_cache.filling import _Sizes, fill
from hf_transfer_plugin.prefix_cache.folders import filling as held
from hf_transfer_plugin.prefix_cache.listing import clear_stores, list_stores
from hf_transfer_plugin.prefix_cache.proving import Place, prove_storage, recheck_tolerance
from hf_transfer_plugin.prefix_cache.sizes import time_words
from hf_transfer_plugin.prefix_cache.stages import Keeping, make_stage
from hf_transfer_plugin.prefix_cache.traces import used_above_only
from tests.conftest import TINY, bert, rows
from tests.tiny_prefixes import prefix, probes_of

pytestmark = pytest.mark.slow

CPU = Place(torch.device("cpu"))
FORK = multiprocessing.get_context("fork")
TOP = freeze_first(3)


def texts(count=5):
    """Rows of different length, the shortest first."""
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(3, 60, (4 + i % 5,), generator=generator)} for i in range(count)]


def collate(some):
    ids = pad_sequence([row["input_ids"] for row in some], batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def trained(make_trainer, cache, model=None, schedule=TOP, **changes):
    torch.manual_seed(0)
    trainer = make_trainer(bert() if model is None else model, train=rows(32), **changes)
    attach(trainer, schedule=schedule, cache=cache)
    trainer.train()
    return trainer


# Precision


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fill_precision": "float16"}, "must be one of same, bfloat16, auto, but got 'float16'"),
        ({"fill_precision": "bfloat16", "storage": "float32"}, "keeps what training computes, but got 'bfloat16'"),
        ({"fill_precision": "auto", "storage": "float32"}, 'must be "same" with `storage="float32"`'),
        ({"fill_precision": "bfloat16", "fill": "first-epoch"}, 'Use `fill="ahead"`'),
    ],
)
def test_precisions_that_cannot_be_are_refused(tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        FrozenPrefixCache(tmp_path, **options)


def test_a_store_that_was_filled_otherwise_is_not_read(make_trainer, tmp_path):
    reports = []
    for precision in ("same", "bfloat16", "bfloat16"):
        cache = FrozenPrefixCache(tmp_path / "cache", fill_precision=precision)
        trainer = trained(make_trainer, cache)
        assert (cache.report["used"], cache.report["hits"], cache.report["misses"]) == (True, 12, 0)
        reports.append((cache.report, trainer.model.classifier.weight))
    (same, live), (first, filled), (second, again) = reports
    assert [report["rows_filled"] for report, _ in reports] == [32, 32, 0]
    assert len(list_stores(tmp_path / "cache")) == 2
    assert [report["cuts"][0]["fill_precision"] for report, _ in reports] == ["same", "bfloat16", "bfloat16"]
    errors = [report["cuts"][0]["storage_error"] for report in (same, first)]
    assert 0 < errors[0] < 2**-10
    assert errors[0] < errors[1] < 2**-5
    assert torch.equal(filled, again)
    assert not torch.equal(filled, live)
    assert second["fill_speedup"] is None


def test_where_training_has_16_bits_nothing_changes(make_trainer, tmp_path):
    folders = []
    for precision in ("same", "bfloat16"):
        cache = FrozenPrefixCache(tmp_path / "cache", fill_precision=precision)
        trained(make_trainer, cache, bf16=True)
        assert cache.report["used"], cache.report["reason"]
        folders.append((cache.report["cuts"][0]["folder"], cache.report["cuts"][0]["fill_precision"]))
    assert folders[0] == folders[1]
    assert folders[0][1] == "same"


@pytest.mark.parametrize(("speedup", "chosen"), [(1.19, "same"), (1.2, "bfloat16")])
def test_auto_takes_what_is_faster_by_a_fifth_and_says_so(
    make_trainer, tmp_path, monkeypatch, caplog, speedup, chosen
):
    monkeypatch.setattr(fill_precision, "measured_speedup", lambda *args: speedup)
    cache = FrozenPrefixCache(tmp_path / "cache", fill_precision="auto")
    with caplog.at_level(logging.INFO):
        trained(make_trainer, cache)
    assert cache.report["cuts"][0]["fill_precision"] == chosen
    assert cache.report["fill_speedup"] == speedup
    assert f"In bfloat16 the frozen layers are {speedup:.2f} times as fast; the rows are stored " in caplog.text


def test_auto_does_nothing_where_the_first_epoch_stores(make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(fill_precision, "measured_speedup", lambda *args: pytest.fail("nothing to measure"))
    cache = FrozenPrefixCache(tmp_path / "cache", fill="first-epoch", fill_precision="auto")
    trained(make_trainer, cache)
    assert cache.report["cuts"][0]["fill_precision"] == "same"


def test_several_processes_would_measure_otherwise_so_auto_is_as_training_runs(monkeypatch):
    monkeypatch.setattr(fill_precision.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(fill_precision.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(fill_precision, "measured_speedup", lambda *args: pytest.fail("must not be measured"))
    assert settled("auto") == "same"
    assert settled("bfloat16") == "bfloat16"


def settled(wanted, storage="float16"):
    model, _, cut = prefix("bert", 2)
    proof = prove_storage(model, cut, texts(), collate, CPU, storage)
    precision = FillPrecision(wanted)
    place, _ = precision.settle(model, cut, proof, texts(), collate, place=CPU, batch_size=4, storage=storage)
    return place.fill


def test_the_speed_is_the_ratio_of_medians_without_the_first_calls(monkeypatch):
    # By turns: training's precision and bfloat16; the first pair is slow.
    taken = [9, 9, 4, 1, 2, 1, 3, 2]
    moments = iter([0, *(m for i, t in enumerate(taken) for m in [sum(taken[: i + 1])] * 2)])
    monkeypatch.setattr(fill_precision.time, "perf_counter", lambda: next(moments))
    model, _, cut = prefix("bert", 2)
    assert measured_speedup(model, cut, probes_of("bert")[0], CPU) == 3.0
    assert model.training


def test_what_is_off_by_more_than_the_bound_is_refused_and_auto_goes_without(monkeypatch):
    monkeypatch.setattr(fill_precision, "measured_speedup", lambda *args: 2.0)
    monkeypatch.setitem(fill_precision.FILL_ROUNDING, "bfloat16", -1.0)
    with pytest.raises(CannotCacheError, match=r"bfloat16 is off by \d\.\de-\d+ from what training computes, more"):
        settled("bfloat16")
    assert settled("auto") == "same"


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
def test_the_error_of_a_fill_lies_within_its_bound(name):
    model, _, cut = prefix(name, 2)
    with torch.no_grad():
        for p in model.parameters():  # Larger weights than at the start, so that the layers do something.
            p.mul_(4 if p.ndim > 1 else 1)
    proof = prove_storage(model, cut, texts(), collate, CPU, "float16")
    error = prove_fill(model, cut, proof, texts(), collate, replace(CPU, fill="bfloat16"), "float16")
    assert proof.error < error < 2**-5 / 2


def test_outputs_that_differ_too_much_are_refused(monkeypatch):
    monkeypatch.setattr(fill_precision, "HALF_AGREEMENT", -1.0)
    with pytest.raises(CannotCacheError, match="outputs from what is stored in bfloat16 differ by"):
        settled("bfloat16")


def test_the_tolerance_of_a_check_by_hand():
    model = bert()
    # A unit of float16, the bound of the fill, and ten times what batches may differ by.
    assert recheck_tolerance(model, replace(CPU, fill="bfloat16"), "float16") == 2**-10 + 2**-5 + 1e-4
    assert recheck_tolerance(model, CPU, "float16") == 2**-10 + 1e-4


# What it will take


def test_times_are_written_as_people_write_them():
    written = [time_words(seconds) for seconds in (0.2, 99, 100, 150, 5969, 5970, 7200)]
    assert written == ["1 s", "99 s", "2 min", "2 min", "99 min", "1.7 h", "2.0 h"]


def test_the_time_that_is_left_by_hand():
    lengths = [10, 8, 6, 4, 4, 2, 2, 2]
    sizes = _Sizes(1, exact=False, tried=True, lengths=lengths, alike=False)
    given = sizes.batches(range(8))
    settles = []
    for seconds in (99.0, 4.0, 5.0):  # Slow at first; then 4 s for 8 tokens, 5 s for 10.
        rows_given = next(given)
        settles.append(sizes.took(seconds))
    assert (rows_given, settles) == ([2, 3], [False, False, True])
    # Half a second a token in both: the smaller batch came first. 4 + 2 + 2 + 2 tokens are left.
    assert sizes.seconds_for([4, 5, 6, 7]) == 5.0
    assert not sizes.took(1.0)
    assert next(given) == [4]


@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_a_fill_foretells_size_and_time_in_one_line(make_trainer, tmp_path, monkeypatch, caplog, storage):
    # Each batch of 8 rows takes a second: 4 of them, whether their sizes are tried or not.
    moments = iter(range(1000))
    monkeypatch.setattr(filling.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(filling, "TRIED", (1,))
    with caplog.at_level(logging.INFO):
        trained(make_trainer, FrozenPrefixCache(tmp_path / "cache", storage=storage))
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Storing ")]
    # 8 tokens of 16 floats for each row.
    assert told == [f"Storing 32 rows: about {'8.2' if storage == 'float16' else '16.4'} kB and 4 s."]


def test_the_first_epoch_foretells_the_size(make_trainer, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        trained(make_trainer, FrozenPrefixCache(tmp_path / "cache", fill="first-epoch"))
    assert "Storing 32 rows: about 8.2 kB, in the first epoch." in caplog.text


# Who fills when


def stage_in(folder, model, learning, storage="float16"):
    keeping = Keeping(folder, storage, None)
    return make_stage(model, learning, texts(), collate, place=CPU, batch_size=4, keeping=keeping)


def _fill_share(folder, share, started):
    torch.set_num_threads(1)
    model, learning, _ = prefix("bert", 2)
    stage = stage_in(folder, model, learning)
    started.wait(30)
    fill(model, [stage.shelf], texts(24), collate, place=CPU, batch_size=2, share=share)


def _filled(folder, shares):
    """The rows of the store, and its records."""
    started = FORK.Barrier(len(shares))
    processes = [FORK.Process(target=_fill_share, args=(folder, share, started)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(shares)
    model, learning, _ = prefix("bert", 2)
    (store,) = stage_in(folder, model, learning).shelf.stores
    return len(store), sum(index.stat().st_size for index in folder.glob("*/*.index")) // 44


def test_shares_of_one_run_are_filled_at_the_same_time(tmp_path, caplog):
    model, learning, _ = prefix("bert", 2)
    stage = stage_in(tmp_path / "cache", model, learning)
    options = {"place": CPU, "batch_size": 2, "share": (1, 2), "expected": (3, 2000)}
    process = FORK.Process(target=fill, args=(model, [stage.shelf], texts(24), collate), kwargs=options)
    with held(stage.shelf.stores[0].folder, (0, 2)), caplog.at_level(logging.INFO):
        process.start()
        process.join(30)
        assert process.exitcode == 0
        fill(model, [stage.shelf], texts(48), collate, **options)
    # All passes together.
    assert "Storing 144 rows: about 2.0 kB and 1 s." in caplog.text


def test_two_runs_of_as_many_processes_store_each_row_once(tmp_path):
    distinct = len({tuple(row["input_ids"].tolist()) for row in texts(24)})
    assert _filled(tmp_path / "cache", [(0, 2), (1, 2), (0, 2), (1, 2)]) == (distinct, distinct)


def test_runs_of_other_numbers_of_processes_store_the_same(tmp_path):
    distinct = len({tuple(row["input_ids"].tolist()) for row in texts(24)})
    rows_stored, records = _filled(tmp_path / "cache", [(0, 1), (0, 2), (1, 2)])
    assert rows_stored == distinct <= records <= 2 * distinct


def _hold(folder, share, began, end):
    with held(folder, share):
        began.set()
        end.wait(30)


def test_a_share_waits_for_the_same_share_alone_and_none_is_cleared(tmp_path):
    folder = tmp_path / "cache" / "store"
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text('{"made_by": "hf_transfer_plugin prefix cache", "format": 1}')
    began, end = FORK.Event(), FORK.Event()
    other = FORK.Process(target=_hold, args=(folder, (1, 2), began, end))
    other.start()
    assert began.wait(10)
    for share in ((0, 2), (0, 1), (1, 3)):
        with held(folder, share) as waited:
            assert not waited
    with pytest.raises(ValueError, match="is being filled by another process"):
        clear_stores(folder.parent)
    end.set()
    with held(folder, (1, 2)):
        other.join(10)
    assert other.exitcode == 0
    assert [one.name for one in clear_stores(folder.parent)] == ["store"]


# Under which weights


def test_weights_above_the_cut_alone_do_not_count():
    model, _, cut = prefix("bert", 2)
    names = used_above_only(model, cut.fed, probes_of("bert"))
    assert {name.split(".layer.")[-1][0] if ".layer." in name else name.split(".")[-2] for name in names} == {
        "1",
        "2",
        "dense",
        "classifier",
    }


def test_what_is_tied_or_read_past_its_module_or_never_called_counts():
    tied = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60))
    names = used_above_only(tied, "transformer.h.1", probes_of("gpt2"))
    assert "transformer.ln_f.weight" in names
    assert "transformer.wte.weight" not in names

    class Odd(BertForSequenceClassification):
        def forward(self, input_ids, **kwargs):
            scale = 1 + self.classifier.weight.mean()
            embedded = self.bert.embeddings.word_embeddings(input_ids) * scale
            return super().forward(inputs_embeds=embedded, **kwargs)

    odd = Odd(BertConfig(**TINY))
    odd.spare = torch.nn.Linear(2, 2)
    names = used_above_only(odd, "bert.encoder.layer.2", probes_of("bert"))
    assert "bert.pooler.dense.weight" in names
    assert "classifier.bias" in names
    assert "classifier.weight" not in names
    assert "spare.weight" not in names


def _with(name):
    torch.manual_seed(0)
    model = bert()
    with torch.no_grad():
        model.get_parameter(name).mul_(1.5)
    return model


def test_a_frozen_weight_above_keeps_the_store_and_one_below_does_not(make_trainer, tmp_path):
    # The uppermost layer learns; the pooler above it is frozen.
    schedule = freeze_pattern(r"^(?!bert\.encoder\.layer\.2|classifier)")
    filled = []
    for model in (
        _with("classifier.bias"),
        _with("bert.pooler.dense.weight"),
        _with("bert.encoder.layer.1.output.dense.weight"),
    ):
        cache = FrozenPrefixCache(tmp_path / "cache")
        trained(make_trainer, cache, model, schedule)
        assert (cache.report["cuts"][0]["fed"], cache.report["misses"]) == ("bert.encoder.layer.2", 0)
        filled.append(cache.report["rows_filled"])
    assert filled == [32, 0, 32]


def test_phases_that_differ_above_the_cut_alone_share_a_shelf(tmp_path):
    model, _, _ = prefix("bert", 2)
    layer = frozenset(name for name, _ in model.named_parameters() if "encoder.layer.2." in name)
    head = frozenset(name for name, _ in model.named_parameters() if name.startswith("classifier."))
    one, two = (stage_in(tmp_path / "cache", model, learning) for learning in (layer, layer | head))
    assert two.shelf is not one.shelf
    assert two.beside([None, one]).shelf is one.shelf
    lower = stage_in(tmp_path / "cache", model, frozenset(n for n, _ in model.named_parameters() if "layer.1." in n))
    assert lower.beside([one]) is lower
