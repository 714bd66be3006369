"""What will train when and what it costs, worked out before anything is trained."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_transfer_plugin.freezing import ever_learning_names, learning_names, set_trainable
from hf_transfer_plugin.layers import LayerGroups, beneath_adapters, discover_layer_groups
from hf_transfer_plugin.layers.probe import dummy_inputs
from hf_transfer_plugin.schedules import Progress

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Phase:
    """
    A stretch of the run in which the same parameters learn.

    Args:
        step (`int`):
            First step.
        steps (`int`):
            Number of steps.
        groups (`tuple[str, ...]`):
            Layer groups that learn, wholly or in part.
        trainable_parameters (`int`):
            Parameters that learn.
        flops (`int`):
            Floating-point operations of matrix products in one forward and backward pass over a batch.
        gradient_bytes (`int`):
            Gradients of the learning parameters.
        optimizer_bytes (`int`):
            Optimizer state of all parameters that have learned so far.
        activation_bytes (`int`):
            Tensors that autograd keeps for the backward pass of a batch.
    """

    step: int
    steps: int
    groups: tuple[str, ...]
    trainable_parameters: int
    flops: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Plan:
    """
    The phases of a run. Printing it gives a table.

    Args:
        phases (`tuple[Phase, ...]`):
            In order; for a metric-driven schedule the first only.
        full (`Phase`):
            What full fine-tuning would cost.
        parameters (`int`):
            Parameters of the model.
        warnings (`tuple[str, ...]`):
            What to know before training.
        measured (`bool`):
            Whether FLOPs and activations come from a pass over dummy inputs; they are 0 where none could be run.
    """

    phases: tuple[Phase, ...]
    full: Phase
    parameters: int
    warnings: tuple[str, ...] = ()
    measured: bool = True
    order: tuple[str, ...] = field(default=(), repr=False)

    @property
    def relative_flops(self) -> float:
        """
        Returns:
            `float`: FLOPs of the run as a share of full fine-tuning for the same steps.
        """
        steps = sum(phase.steps for phase in self.phases)
        return sum(phase.flops * phase.steps for phase in self.phases) / max(self.full.flops * steps, 1)

    def __str__(self) -> str:
        head = ("from step", "learning", "trainable", "share", "FLOPs / full", "gradients", "optimizer", "activations")
        rows = [head, *(self._row(phase) for phase in self.phases), self._row(self.full, "(full)")]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(w) if i == 1 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        if self.measured:
            lines.append(
                f"\nWhole run: {self.relative_flops:.2f} of the FLOPs of full fine-tuning for the same steps."
            )
        else:
            lines.append("\nNo pass over dummy inputs was possible for this model: FLOPs and activations are unknown.")
        lines += [f"Note: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _row(self, phase: Phase, label: str | None = None) -> tuple[str, ...]:
        ratio = phase.flops / self.full.flops if self.full.flops else 0.0
        memory = (phase.gradient_bytes, phase.optimizer_bytes, phase.activation_bytes)
        return (
            label or str(phase.step),
            _span(phase.groups, self.order),
            f"{phase.trainable_parameters:,}",
            f"{phase.trainable_parameters / max(self.parameters, 1):.1%}",
            f"{ratio:.2f}" if self.measured else "?",
            *(f"{value / MEBIBYTE:,.0f} MiB" for value in memory),
        )


def _span(names: tuple[str, ...], order: tuple[str, ...]) -> str:
    """`layer.4 - head` for neighbours, else a list."""
    indices = [order.index(name) for name in names]
    if len(names) == len(order):
        return "everything"
    if len(names) > 2 and indices == list(range(indices[0], indices[-1] + 1)):
        return f"{names[0]} - {names[-1]}"
    return ", ".join(names)


def plan(
    model: nn.Module,
    schedule: Any,
    *,
    max_steps: int,
    epochs: float = 1.0,
    groups: LayerGroups | None = None,
    batch_size: int = 8,
    length: int = 128,
    optimizer_states: int = 2,
    checkpointing: bool = False,
) -> Plan:
    """
    Works out the phases of a run and their cost. Nothing is trained, and the model stays as it is.

    FLOPs and activations are counted in a real forward and backward pass of a weightless copy over dummy inputs, once
    for each set of learning parameters.

    Args:
        model (`nn.Module`):
            The model.
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            What decides.
        max_steps (`int`):
            Optimizer steps of the run.
        epochs (`float`, *optional*, defaults to 1.0):
            Epochs of the run.
        groups (`LayerGroups`, *optional*):
            Layer groups; discovered where they are not given.
        batch_size (`int`, *optional*, defaults to 8):
            Rows of a batch.
        length (`int`, *optional*, defaults to 128):
            Tokens of a row.
        optimizer_states (`int`, *optional*, defaults to 2):
            Values that the optimizer keeps for each parameter; Adam's 2.
        checkpointing (`bool`, *optional*, defaults to `False`):
            Whether activation checkpointing will be on.

    Returns:
        `Plan`: The plan.

    Raises:
        ValueError: If the strategy does not fit the model.
    """
    groups = groups if groups is not None else discover_layer_groups(model)
    ever = ever_learning_names(schedule, model, groups)
    sizes = {name: (p.numel(), p.numel() * p.element_size()) for name, p in model.named_parameters()}
    copy, inputs = _weightless(model, length)
    costs: dict[frozenset[str], tuple[int, int]] = {}

    def phase(step: int, steps: int, learning: frozenset[str], so_far: frozenset[str]) -> Phase:
        if learning not in costs:
            costs[learning] = _measure(copy, inputs, learning)
        flops, kept = costs[learning]
        return Phase(
            step,
            steps,
            tuple(group.name for group in groups if any(n in learning for n in group.parameters)),
            sum(sizes[n][0] for n in learning),
            flops * batch_size,
            sum(sizes[n][1] for n in learning),
            optimizer_states * sum(sizes[n][1] for n in so_far),
            kept * batch_size,
        )

    starts = phase_starts(schedule, max_steps, epochs, model, groups)
    phases, so_far = [], frozenset[str]()
    for i, (step, learning) in enumerate(starts):
        so_far |= learning
        end = starts[i + 1][0] if i + 1 < len(starts) else max_steps
        phases.append(phase(step, end - step, learning, so_far))
    everything = frozenset(sizes)
    full_cost = phase(0, max_steps, everything, everything)
    warnings = _warnings(schedule, phases, full_cost, groups, checkpointing)
    idle = ever - so_far
    if idle and not getattr(schedule, "needs_evaluation", False):
        late = [g.name for g in groups if idle & set(g.parameters)]
        warnings.append(f"The run ends before {', '.join(late)} learn; train longer or thaw faster.")
    return Plan(
        tuple(phases),
        full_cost,
        sum(n for n, _ in sizes.values()),
        tuple(warnings),
        bool(costs[everything][0]),
        groups.names,
    )


def phase_starts(
    schedule: Any, max_steps: int, epochs: float, model: nn.Module, groups: LayerGroups
) -> list[tuple[int, frozenset[str]]]:
    """
    Args:
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            What decides.
        max_steps (`int`):
            Optimizer steps of the run.
        epochs (`float`):
            Epochs of the run.
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its layer groups.

    Returns:
        `list[tuple[int, frozenset[str]]]`: First step of each phase, and the names of the parameters that learn in it;
        of a metric-driven schedule the first phase alone.
    """
    found: list[tuple[int, frozenset[str]]] = []
    # A policy never changes, and a metric-driven schedule cannot be foreseen.
    fixed = hasattr(schedule, "choose") or getattr(schedule, "needs_evaluation", False)
    for step in range(1 if fixed else max_steps):
        learning = learning_names(schedule, Progress(step, max_steps, epochs), model, groups)
        if not found or learning != found[-1][1]:
            found.append((step, learning))
    return found


def _weightless(model: nn.Module, length: int) -> tuple[nn.Module | None, Mapping[str, torch.Tensor] | None]:
    """A copy on the meta device, and inputs that it takes."""
    config = getattr(model, "config", None)
    if config is None or any(
        type(p.data) is not torch.Tensor or not p.is_floating_point() for p in model.parameters()
    ):
        return None, None  # Quantised weights cannot be told without their values.
    # What other libraries build around a model has no config of its own.
    if beneath_adapters(model)[0] is model and hasattr(type(model), "config_class"):
        with torch.device("meta"):
            copy = type(model)(config)
        copy.to(next(model.parameters()).dtype)
    else:
        copy = _on_meta(model)
    for inputs in dummy_inputs(
        model, length=min(length, getattr(config, "max_position_embeddings", length) or length)
    ):
        on_meta = _moved(inputs)
        try:
            with torch.no_grad():
                copy(**on_meta)
        except Exception:  # noqa: BLE001  a guess at inputs may fail in any way; the plan then says "unknown"
            continue
        return copy.train(), on_meta
    return None, None


def _moved(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the meta device, without masks, which masking code looks into."""
    kept = {name: value for name, value in inputs.items() if name != "attention_mask"}
    return {name: _moved(v) if isinstance(v, Mapping) else v.to("meta") for name, v in kept.items()}


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model with adapters, which no config tells, without its weights being there twice at any time."""
    tensors = [*model.parameters(), *model.buffers()]
    memo: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in tensors
    }
    return deepcopy(model, memo)


def _measure(
    copy: nn.Module | None, inputs: Mapping[str, torch.Tensor] | None, learning: frozenset[str]
) -> tuple[int, int]:
    """FLOPs of one forward and backward pass over one row, and bytes that autograd keeps for it."""
    if copy is None or inputs is None:
        return 0, 0
    set_trainable(copy, learning)
    parameters = {id(p) for p in copy.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in parameters:
            kept[id(base)] = base
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = copy(**inputs)
        first = next(v for v in output.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
        if first.requires_grad:
            first.sum().backward()
    copy.zero_grad(set_to_none=True)
    return counter.get_total_flops(), sum(t.numel() * t.element_size() for t in kept.values())


def _warnings(schedule: Any, phases: list[Phase], full: Phase, groups: LayerGroups, checkpointing: bool) -> list[str]:
    found = []
    names = groups.names
    for phase in phases:
        lowest = names.index(phase.groups[0])
        frozen_above = [name for name in names[lowest:] if name not in phase.groups]
        if frozen_above and phase.flops > 0.6 * full.flops:
            found.append(
                f"From step {phase.step} {_span(tuple(frozen_above), names)} are frozen above {names[lowest]}, which "
                f"learns, so a step still costs {phase.flops / full.flops:.0%} of full fine-tuning: the gradient must "
                "pass every layer above the lowest that learns. Freezing saves time from the bottom up only."
            )
            break
    if checkpointing and any(names.index(phase.groups[0]) > 0 for phase in phases):
        found.append(
            "Activation checkpointing runs frozen bottom layers twice unless its input hook is removed; the callback "
            "removes it for non-reentrant checkpointing (the default)."
        )
    if groups.tied_head:
        found.append(
            "The output layer shares its weights with the embeddings, so there is no head group: schedules start at "
            f"{names[-1]}, and the output layer learns when the embeddings do."
        )
    if getattr(schedule, "needs_evaluation", False):
        found.append("The thaws follow the evaluation metric, so only the first phase can be foreseen.")
    return found
