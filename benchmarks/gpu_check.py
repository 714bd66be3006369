"""
What tests on processors cannot show, checked on one GPU: mixed precision, fused kernels, inductor, memory, launchers.

To be run when a GPU is at hand; it was written on a machine without one, so its first run there checks the script too:
    python -m benchmarks.gpu_check                  # some minutes; exit code 1 where a line says FAIL
    python -m benchmarks.gpu_check --only resume    # checks whose name holds the word
    python -m benchmarks.gpu_check --device cpu     # the checks that make sense there, under a minute
Needs torch, transformers, accelerate, datasets and this package. No network: models are made from small configs.
"""

import os

# Before torch starts the device: one GPU, or Trainer would use DataParallel; and matrix products that repeat.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import datetime
import gc
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, set_seed
from transformers.utils import logging

from benchmarks.gpu_runs import (
    LAUNCHES,
    STEPS,
    STILL,
    Overflowing,
    Watcher,
    assert_only_the_learning_move,
    bert,
    largest_difference,
    launch,
    plain_run,
    rows,
    thaw_steps,
    trainer_of,
)
from hf_transfer_plugin import GradualUnfreezing, LayerwiseDecay
from hf_transfer_plugin.freezing import freeze_first, full
from hf_transfer_plugin.layers import discover_layer_groups
from hf_transfer_plugin.schedules import LayerSampling


class Skip(Exception):  # noqa: N818
    """A check that this device cannot do."""


def need_gpu(device: str) -> None:
    if device == "cpu":
        raise Skip("needs a GPU")


def has_bf16(device: str) -> bool:
    return device == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def need_bf16(device: str) -> None:
    if not has_bf16(device):
        raise Skip("needs a GPU with bfloat16")


def check_bf16(device: str) -> str:
    need_bf16(device)
    watcher = Watcher()
    trainer = trainer_of(device, bert(), GradualUnfreezing(), watcher, bf16=True)
    trainer.train()
    assert_only_the_learning_move(watcher)
    assert {tensor.dtype for tensor in watcher.weights[-1].values()} == {torch.float32}, "weights in 16 bits"
    return f"thaws at steps {thaw_steps(trainer)}"


def check_fp16_with_skipped_steps_around_a_thaw(device: str) -> str:
    need_gpu(device)
    for optim in ("adamw_torch_fused", "adamw_torch"):
        watcher, schedule = Watcher(), GradualUnfreezing(every=2)
        trainer = trainer_of(device, bert(), schedule, watcher, cls=Overflowing, fp16=True, optim=optim)
        trainer.at = (1, 4)  # the step before a thaw, and one that begins with a thaw
        trainer.train()
        assert thaw_steps(trainer)[:3] == [0, 2, 4], f"thaws at {thaw_steps(trainer)}"
        skipped = [step for step, skip in enumerate(watcher.skipped) if skip]
        assert {1, 4} <= set(skipped), f"{optim} skipped only the steps {skipped}"
        assert len(skipped) < STEPS // 2, f"{optim} skipped the steps {skipped}"
        moved = {step: len(watcher.moved(step)) for step in skipped}
        assert not any(moved.values()), f"{optim} moved parameters in skipped steps: {moved}"
        assert_only_the_learning_move(watcher)
    return f"skipped steps {skipped}, loss scale {watcher.scale:g}, fused and not"


def check_fused_adamw_with_layer_groups(device: str) -> str:
    ends = {}
    for optim in ("adamw_torch_fused", "adamw_torch"):
        watcher = Watcher()
        rates = LayerwiseDecay(0.5, head_multiplier=2.0)
        trainer_of(
            device, bert(**STILL), GradualUnfreezing(), watcher, rates=rates, optim=optim, learning_rate=1e-3
        ).train()
        assert_only_the_learning_move(watcher)
        assert all(bool(group.get("fused")) == (optim == "adamw_torch_fused") for group in watcher.groups), optim
        found = sorted({group["lr"] for group in watcher.groups}, reverse=True)
        wanted = [2e-3, *(1e-3 * 0.5**i for i in range(1, 6))]
        assert all(abs(a - b) < 1e-9 for a, b in zip(found, wanted, strict=True)), f"rates {found}"
        ends[optim] = watcher.weights[-1]
    difference = largest_difference(*ends.values())
    assert difference < 5e-4, f"the fused kernel differs by {difference:.1e}"
    return f"{difference:.1e} from the kernel that is not fused"


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_resume(device: str) -> str:
    for schedule in (GradualUnfreezing(), LayerSampling(active=1, every=2)):
        for changes in ({}, {"bf16": True})[device == "cpu" : 1 + has_bf16(device)]:
            with deterministic():
                whole = Watcher()
                saved = {"save_strategy": "steps", "save_steps": 5, **changes}
                first = trainer_of(device, bert(), schedule, whole, **saved)
                first.train()
                for step in (5, 10):
                    watcher = Watcher()
                    trainer = trainer_of(device, bert(), schedule, watcher, **changes)
                    trainer.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-{step}")
                    difference = largest_difference(whole.weights[-1], watcher.weights[-1])
                    assert difference == 0, f"{schedule.name} {changes} from step {step}: {difference:.1e} apart"
    kinds = " and ".join(("fp32", "bf16")[device == "cpu" : 1 + has_bf16(device)])
    return f"bitwise from steps 5 and 10, {kinds}, gradual-unfreezing and layer-sampling"


def check_compile(device: str) -> str:
    backend = "inductor" if device != "cpu" else "aot_eager"
    # The head would set its problem type in its first forward, and be compiled again for it.
    schedule, losses, watcher = GradualUnfreezing(every=3), {}, Watcher()
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        changes = {"torch_compile": True, "torch_compile_backend": backend} if compiled else {}
        try:
            trainer = trainer_of(
                device,
                bert(2, problem_type="single_label_classification", **STILL),
                schedule,
                watcher,
                learning_rate=1e-3,
                **changes,
            )
            watcher.graphs.clear()
            trainer.train()
        finally:
            # Left there by the arguments, they would have every later Trainer compile.
            for name in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
                del os.environ[name]
        losses[compiled] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    new = [now - before for before, now in zip([0, *watcher.graphs], watcher.graphs, strict=False)]
    begins = thaw_steps(trainer)
    assert [step for step, count in enumerate(new) if count] == begins, f"new graphs in each step: {new}"
    assert max(new) == new[0], f"more than one compilation in a phase: {new}"
    difference = max(abs(a - b) for a, b in zip(losses[False], losses[True], strict=True))
    assert difference < 1e-3, f"losses differ by {difference:.1e}: {losses}"
    return f"{backend}: {new[0]} graph(s) in each of {len(begins)} phases, losses {difference:.1e} apart"


def check_batchnorm_of_frozen_layers(device: str) -> str:
    set_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    model = ResNetForImageClassification(ResNetConfig(**sizes, num_labels=2))
    frozen = {name for group in list(discover_layer_groups(model))[:2] for name in group.parameters}
    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": torch.tensor(i % 2)} for i in range(64)]
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    trainer_of(device, model, freeze_first(2), data=data).train()
    moved = {
        name
        for name, buffer in model.named_buffers()
        if name in before and not torch.equal(buffer.cpu(), before[name])
    }
    still = {name for name in before if f"{name.rsplit('.', 1)[0]}.weight" in frozen}
    assert still, "no frozen BatchNorm"
    assert moved == before.keys() - still, (
        f"{sorted(moved & still)[:3]} moved, {sorted(before.keys() - still - moved)[:3]} did not"
    )
    return f"{len(still)} statistics still, {len(moved)} moved"


def check_dropout_of_frozen_layers(device: str) -> str:
    spread = {}
    for schedule in (freeze_first(5), full()):
        outputs: list[torch.Tensor] = []
        model = bert(hidden_dropout_prob=0.5)
        model.bert.encoder.layer[-1].register_forward_hook(
            lambda m, args, out, kept=outputs: kept.append((out[0] if isinstance(out, tuple) else out).detach())
        )
        trainer_of(device, model, schedule, data=rows(alike=True), learning_rate=0.0, max_steps=4).train()
        spread[schedule.name] = max(float((output - outputs[-1]).abs().max()) for output in outputs[-4:])
    assert spread["full"] > 0.1, "the control does not drop out"
    assert spread["freeze-first"] == 0, f"the same rows differ by {spread['freeze-first']:.1e}"
    return f"the same rows differ by 0, unfrozen by {spread['full']:.1f}"


def check_checkpointing_of_a_frozen_bottom(device: str) -> str:
    model, forward, backward = bert(), [0] * 4, [0] * 4
    for i, block in enumerate(model.bert.encoder.layer):

        def count(m: nn.Module, args: Any, i: int = i) -> None:
            forward[i] += torch.is_grad_enabled()

        def differentiate(m: nn.Module, into: Any, out: Any, i: int = i) -> None:
            backward[i] += 1

        block.attention.register_forward_pre_hook(count)
        block.output.dense.register_full_backward_hook(differentiate)
    trainer = trainer_of(device, model, freeze_first(3), max_steps=1, activation_checkpointing=True)
    forward[:] = [0] * 4
    trainer.train()
    assert forward == [1, 1, 2, 2], f"forward passes {forward}"
    assert backward == [0, 0, 1, 1], f"backward passes {backward}"
    return f"forward passes {forward}, backward passes {backward}"


def check_16_bit_model_with_fp32_master_weights(device: str) -> str:
    need_bf16(device)
    watcher = Watcher()
    schedule = GradualUnfreezing(frozen=2)
    trainer_of(device, bert().to(torch.bfloat16), schedule, watcher, bf16=True, learning_rate=1e-3).train()
    assert_only_the_learning_move(watcher)
    kinds = {(name in watcher.learning[-1], tensor.dtype) for name, tensor in watcher.weights[-1].items()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}, str(kinds)
    assert watcher.weights[0].keys() - watcher.learning[0] > watcher.weights[0].keys() - watcher.learning[-1]
    return "what never learns stays bfloat16 and unmoved, what will ever learn is fp32 from the start and moves"


def check_memory(device: str) -> str:
    need_gpu(device)
    need_bf16(device)
    large = {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 128}
    data = rows(64, length=128)
    peaks = {}
    for name, k, sixteen in (
        ("full", 0, False),
        ("5 of 10", 5, False),
        ("9 of 10", 9, False),
        ("5 of 10, 16 bits", 5, True),
    ):
        model = bert(8, **large)
        if sixteen:
            model.to(torch.bfloat16)
        gc.collect()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        trainer = trainer_of(
            device, model, freeze_first(k), data=data, bf16=True, max_steps=3, per_device_train_batch_size=8
        )
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        peaks[name] = torch.cuda.max_memory_allocated() - before
        del trainer, model
    shares = {name: peak / peaks["full"] for name, peak in peaks.items()}
    assert shares["9 of 10"] < shares["5 of 10"] < 0.9, str(shares)
    assert shares["5 of 10, 16 bits"] < shares["5 of 10"], str(shares)
    shown = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return f"{shown} of {peaks['full'] / 2**20:.0f} MiB"


def check_launched_ddp(device: str) -> str:
    return launch(device, "ddp")


def check_launched_fsdp2(device: str) -> str:
    need_gpu(device)
    return launch(device, "fsdp2")


CHECKS: tuple[Callable[[str], str], ...] = (
    check_bf16,
    check_fp16_with_skipped_steps_around_a_thaw,
    check_fused_adamw_with_layer_groups,
    check_resume,
    check_compile,
    check_batchnorm_of_frozen_layers,
    check_dropout_of_frozen_layers,
    check_checkpointing_of_a_frozen_bottom,
    check_16_bit_model_with_fp32_master_weights,
    check_memory,
    check_launched_ddp,
    check_launched_fsdp2,
)


def header(device: str) -> str:
    packages = ("torch", "transformers", "accelerate", "datasets", "hf-transfer-plugin")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    name = platform.machine() if device == "cpu" else f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return f"{datetime.date.today()}  {versions}\ndevice: {device} ({name}), Python {platform.python_version()}\n"


def run(check: Callable[[str], str], device: str) -> str:
    started, name = time.perf_counter(), check.__name__.removeprefix("check_").replace("_", " ")
    try:
        verdict, told = "pass", check(device)
    except Skip as reason:
        verdict, told = "skip", str(reason)
    except Exception as error:
        verdict, told = "FAIL", f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stderr)
    print(f"{verdict}  {name}: {told} ({time.perf_counter() - started:.1f} s)", flush=True)
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="", help="a word of the checks' names")
    parser.add_argument("--worker", choices=tuple(LAUNCHES), help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU; use `--device cpu` for the checks that need none.", file=sys.stderr)
        return 1
    if options.worker:
        save_file(plain_run(options.device, options.worker), options.out)
        torch.distributed.destroy_process_group()
        return 0
    print(header(options.device))
    chosen = [check for check in CHECKS if options.only.replace(" ", "_") in check.__name__]
    verdicts = [run(check, options.device) for check in chosen]
    print(f"\n{json.dumps({verdict: verdicts.count(verdict) for verdict in ('pass', 'FAIL', 'skip')})}")
    return int("FAIL" in verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
