"""The runs that gpu_check.py looks at: tiny models, a Trainer that is watched, and the same run under a launcher."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from hf_transfer_plugin import FreezingCallback, GradualUnfreezing, attach

ROOT = Path(__file__).parents[1]
STEPS = 12
TINY = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 200}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FSDP = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: BertLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
"""
COMMON = (
    "gpu_ids: all\nmachine_rank: 0\nmain_process_port: 0\nmixed_precision: 'no'\nnum_machines: 1\nnum_processes: 1\n"
)
LAUNCHES = {
    "ddp": f"compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n{COMMON}",
    "fsdp2": FSDP + COMMON,
}


class Watcher(TrainerCallback):
    """Notes weights and what learns before each step, what the scaler skipped, and the optimizer's settings."""

    freezing: FreezingCallback

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.learning: list[set[str]] = []
        self.skipped: list[bool] = []
        self.scale = 1.0
        self.groups: list[dict[str, Any]] = []
        self.graphs: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Behind the freezing callback, which stands first."""
        self.weights.append(weights_of(model))
        self.learning.append({name for name, p in model.named_parameters() if p.requires_grad})
        self.groups = [dict(group, params=len(group["params"])) for group in kwargs["optimizer"].param_groups]
        self.scale = scale_of(kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """The scale falls with a skipped step; a fused optimizer skips by itself, and Accelerate does not know."""
        self.skipped.append(scale_of(optimizer) < self.scale)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Graphs compiled so far."""
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The weights at the end."""
        self.weights.append(weights_of(model))

    def moved(self, step: int) -> set[str]:
        """Names of the parameters whose bits the step changed."""
        before, after = self.weights[step], self.weights[step + 1]
        return {name for name in before if not torch.equal(before[name], after[name])}


class Overflowing(Trainer):
    """Gives an infinite loss at some steps, as too large a loss scale does."""

    at: tuple[int, ...] = ()

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Infinite at the chosen steps."""
        loss = super().compute_loss(*args, **kwargs)
        return loss * float("inf") if self.state.global_step in self.at else loss


def scale_of(optimizer: Any) -> float:
    scaler = getattr(optimizer, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    full_ones = {n: p.full_tensor() if hasattr(p, "full_tensor") else p for n, p in model.named_parameters()}
    return {name: parameter.detach().to("cpu", copy=True) for name, parameter in full_ones.items()}


def bert(layers: int = 4, **changes: Any) -> BertForSequenceClassification:
    set_seed(0)
    # Eager attention: the memory-efficient kernel's backward pass does not repeat bit by bit.
    config = {**TINY, "num_hidden_layers": layers, "attn_implementation": "eager", **changes}
    return BertForSequenceClassification(BertConfig(**config))


def rows(count: int = 64, length: int = 16, alike: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, 200, (count, length), generator=generator)
    return [
        {
            "input_ids": drawn[0 if alike else i],
            "attention_mask": torch.ones(length, dtype=torch.long),
            "labels": torch.tensor(i % 2),
        }
        for i in range(count)
    ]


def trainer_of(
    device: str,
    model: nn.Module,
    schedule: Any,
    *callbacks: TrainerCallback,
    cls: type[Trainer] = Trainer,
    rates: Any = None,
    data: Any = None,
    **changes: Any,
) -> Trainer:
    arguments = {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": False,
        **changes,
    }
    set_seed(0)
    trainer = cls(
        model=model, args=TrainingArguments(**arguments), train_dataset=data or rows(), callbacks=[*callbacks]
    )
    trainer.remove_callback(PrinterCallback)
    attach(trainer, schedule=schedule, learning_rates=rates)
    for watcher in callbacks:
        watcher.freezing = freezing_of(trainer)
    return trainer


def freezing_of(trainer: Trainer) -> FreezingCallback:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, FreezingCallback))


def thaw_steps(trainer: Trainer) -> list[int]:
    return [phase["step"] for phase in freezing_of(trainer).phases]


def assert_only_the_learning_move(watcher: Watcher) -> None:
    """In every step that was taken, what is frozen keeps its bits, and something of every learning layer moves."""
    assert len(watcher.weights) == STEPS + 1, f"{len(watcher.weights) - 1} steps"
    for step, learning in enumerate(watcher.learning):
        named = [phase["groups"] for phase in watcher.freezing.phases if phase["step"] <= step][-1]
        wanted = {n for group in watcher.freezing.groups if group.name in named for n in group.parameters}
        assert learning == wanted, f"step {step} trains {len(learning)} parameters instead of {len(wanted)}"
        moved = watcher.moved(step)
        assert moved <= learning, f"frozen but moved in step {step}: {sorted(moved - learning)[:3]}"
        matrices = {name for name in learning if watcher.weights[0][name].ndim > 1 and not watcher.skipped[step]}
        assert matrices <= moved, f"learning but unmoved in step {step}: {sorted(matrices - moved)[:3]}"


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys(), "other parameters"
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def plain_run(device: str, launched: str = "") -> dict[str, torch.Tensor]:
    """Trains by gradual unfreezing, in a process of a launcher wrapped as it says; gives the weights."""
    seen: dict[str, Any] = {}

    class Ends(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen["sharded"] = all(isinstance(parameter, DTensor) for parameter in model.parameters())

        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            seen["weights"] = weights_of(model)

    changes = {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0}
    trainer = trainer_of(device, bert(**STILL), GradualUnfreezing(), Ends(), **changes)
    if launched == "ddp":
        # Accelerate leaves the model of a single process unwrapped, so that the reducer would not be tested.
        trainer.model_wrapped = nn.parallel.DistributedDataParallel(trainer.model, find_unused_parameters=True)
    trainer.train()
    if launched:
        assert torch.distributed.is_initialized(), "no process group"
    if launched == "fsdp2":
        assert trainer.is_fsdp_enabled, "Trainer knows nothing of FSDP"
        assert seen["sharded"], "not every parameter is a DTensor"
    return seen["weights"]


def launch(device: str, kind: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        out, config = f"{folder}/weights.safetensors", f"{folder}/accelerate.yaml"
        Path(config).write_text(LAUNCHES[kind])
        with_accelerate = ["accelerate.commands.launch", "--config_file", config]
        # On processors accelerate starts one process without a group.
        launcher = (
            with_accelerate if device != "cpu" else ["torch.distributed.run", "--standalone", "--nproc_per_node=1"]
        )
        command = [
            sys.executable,
            "-m",
            *launcher,
            "-m",
            "benchmarks.gpu_check",
            "--device",
            device,
            "--worker",
            kind,
            "--out",
            out,
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
        assert done.returncode == 0, f"the launched run ended with {done.returncode}; its messages stand above"
        difference = largest_difference(plain_run(device), load_file(out))
    assert difference < 1e-5, f"{difference:.1e} from the run without a launcher"
    return f"{difference:.1e} from the run without a launcher"
