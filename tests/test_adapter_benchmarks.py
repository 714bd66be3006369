"""The benchmarks of adapters: their order, the rates that a sweep chooses, what is left after a break, and tables."""

import argparse
import json
import subprocess

import pytest
import torch
from peft import LoraConfig, get_peft_model

from benchmarks import adapters, plain_peft
from benchmarks.adapter_settings import METHODS, SETTINGS, adapter_of
from tests.conftest import bert


def sweep(setting, family, values):
    metric = SETTINGS[setting].metric
    rates = zip(SETTINGS[setting].rates[family], values, strict=True)
    return [
        {
            "kind": "sweep",
            "setting": setting,
            "method": family,
            "seed": 0,
            "learning_rate": rate,
            "metrics": {metric: v},
        }
        for rate, v in rates
    ]


def line(setting="minilm", method="LoRA", seed=0, **changes):
    plan = SETTINGS[setting]
    return {
        "kind": "run",
        "setting": setting,
        "method": method,
        "seed": seed,
        "learning_rate": 1e-3,
        "metrics": {plan.metric: 0.75 + seed / 100, plan.held: 0.9},
        "trainable_share": 0.0123,
        "memory_mib": {"peak": 1000.0, "grown": 400.0},
        "seconds": {"cpu_a_step": 0.5},
        "megabytes": 2.5,
        "process_wall": 30.0,
        "process_cpu": 25.0,
        **changes,
    }


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "RESULTS", tmp_path / "adapters.jsonl")
    monkeypatch.setattr(plain_peft, "RESULTS", tmp_path / "plain_peft.jsonl")
    return tmp_path


def test_a_rate_is_chosen_by_the_direction_of_the_metric_and_only_when_all_were_tried():
    up = sweep("minilm", "LoRA", (0.6, 0.8, 0.7))
    assert adapters.chosen_rate(up, "minilm", "DoRA") == SETTINGS["minilm"].rates["LoRA"][1]
    assert adapters.chosen_rate(up[:2], "minilm", "LoRA") is None
    down = sweep("smollm2", "IA3", (30.0, 20.0))
    assert adapters.chosen_rate(down, "smollm2", "IA3") == SETTINGS["smollm2"].rates["IA3"][1]


def test_the_first_runs_are_the_most_telling_and_each_is_made_once():
    jobs = adapters.pending([])
    runs = [(job["setting"], job["method"], job["seed"]) for job in jobs if job["kind"] == "run"]
    wanted = {
        (s, m, seed) for s, plan in SETTINGS.items() for m, count in plan.methods.items() for seed in range(count)
    }
    assert set(runs) == wanted
    assert len(runs) == len(wanted)
    assert runs[:4] == [(setting, method, 0) for method in ("full", "LoRA") for setting in SETTINGS]
    kinds = [(job["kind"], job["method"]) for job in jobs]
    assert kinds.index(("sweep", "IA3")) < kinds.index(("run", "IA3"))


def test_what_is_there_is_not_run_again_whatever_rate_it_had():
    before = {str(job) for job in adapters.pending([])}
    left = adapters.pending([line(learning_rate=7.0)])
    assert len(left) == len(before) - 1
    assert not [
        job
        for job in left
        if (job["kind"], job["setting"], job["method"], job["seed"]) == ("run", "minilm", "LoRA", 0)
    ]


def test_no_run_is_started_that_would_not_fit(results, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(adapters, "in_child", lambda job, options: started.append(job))
    options = argparse.Namespace(smoke=False, only="", minutes=0.5, data=None, threads=1)
    assert adapters.work(options) == []
    assert not started
    assert "no time is left" in capsys.readouterr().out


def test_a_run_that_fails_is_named_and_the_others_go_on(results, monkeypatch):
    def run(job, options):
        if job["kind"] == "sweep":
            raise subprocess.CalledProcessError(1, "python")
        return line() | job

    monkeypatch.setattr(adapters, "in_child", run)
    failed = adapters.work(argparse.Namespace(smoke=False, only="minilm", minutes=60, data=None, threads=1))
    assert (
        len(failed)
        == len(set(failed))
        == sum(len(rates) for rates in SETTINGS["minilm"].rates.values() if len(rates) > 1)
    )
    assert {(read["kind"], read["method"]) for read in adapters.read_results()} == {
        ("before", "none"),
        ("run", "full"),
    }


def test_the_table_has_means_and_ranges_over_the_seeds():
    table = adapters.table([line(seed=seed) for seed in range(3)])
    assert "| LoRA | 0.001 | 3 | 0.760 (0.750-0.770) | 0.900 (0.900-0.900) | 1.23 % | 1,000 MiB | 400 MiB |" in table


def test_the_top_half_is_half_of_the_blocks():
    assert adapter_of("minilm", "LoRA, top half") == {"name": "lora", "layers": 3}
    assert adapter_of("smollm2", "LoRA, top half") == {"name": "lora", "layers": 15}
    assert all(method.rates_of in METHODS for method in METHODS.values())


def pair(last):
    figures = {"seconds": {"cpu_a_step": 1.0, "wall_a_step": 1.0}, "memory_mib": {"peak": 900.0, "grown": 300.0}}
    return [
        {"case": "classification", "round": 0, "way": way, "losses": [1.0, loss], "adapter": "a", **figures}
        for way, loss in (("script", 0.5), ("attach", last))
    ]


@pytest.mark.parametrize(("last", "told"), [(0.5, "0; the same bits"), (0.75, "0.25; the same bits")])
def test_losses_are_compared_bit_by_bit(results, last, told):
    plain_peft.RESULTS.write_text("".join(json.dumps(read) + "\n" for read in pair(last)))
    assert told in plain_peft.table(plain_peft.read_results())
    options = argparse.Namespace(smoke=False, rounds=1, data=None)
    if last == 0.5:
        plain_peft.measure("classification", options)
    else:
        with pytest.raises(RuntimeError, match="must be equal, but differ by 0.25"):
            plain_peft.measure("classification", options)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT asks for it
def test_the_fingerprint_tells_a_single_bit():
    model = get_peft_model(bert(), LoraConfig(target_modules=["query"]))
    before = plain_peft.fingerprint(model)
    assert plain_peft.fingerprint(model) == before
    weight = next(p for name, p in model.named_parameters() if "lora_B" in name)
    with torch.no_grad():
        weight[0, 0] = 1e-30
    assert plain_peft.fingerprint(model) != before
