"""The callback that freezes and thaws."""

import logging
from typing import Any

from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from hf_transfer_plugin.callbacks.adapters import HeldFlags, allocates_ranks
from hf_transfer_plugin.callbacks.agreement import FLATTENED, RankAgreement, check_ddp, is_sharded
from hf_transfer_plugin.callbacks.head import solve_output_layer
from hf_transfer_plugin.callbacks.inputs import InputGradients
from hf_transfer_plugin.callbacks.ranks import require_same
from hf_transfer_plugin.callbacks.resuming import STATE_KEY, remember_run
from hf_transfer_plugin.freezing import (
    FreezingPolicy,
    FrozenModules,
    ever_learning_names,
    learning_names,
    set_trainable,
)
from hf_transfer_plugin.layers import (
    LayerGroups,
    discover_layer_groups,
    is_flattened,
    locked_parameters,
    parameters_by_name,
)
from hf_transfer_plugin.learning_rates import groups_of
from hf_transfer_plugin.schedules import LinearProbeThenFineTune, Progress

logger = logging.getLogger(__name__)


def progress_of(args: Any, state: Any, step: int | None = None) -> Progress:
    """
    Reads the progress from Trainer's state.

    Args:
        args (`TrainingArguments`):
            The arguments; they name the metric.
        state (`TrainerState`):
            The state.
        step (`int`, *optional*):
            Another step than the present one.

    Returns:
        `Progress`: The moment.
    """
    metric = args.metric_for_best_model or "loss"
    return Progress(
        step=state.global_step if step is None else step,
        max_steps=state.max_steps,
        epochs=state.num_train_epochs,
        history=state.log_history,
        metric=metric if metric.startswith("eval_") else f"eval_{metric}",
        greater_is_better=bool(args.greater_is_better),
    )


class FreezingCallback(TrainerCallback):
    """
    Freezes and thaws layer groups while an otherwise untouched Trainer trains. Everything follows from the step, so a
    resumed run goes on as if it had not stopped. Frozen BatchNorm and dropout stay still.

    Do not freeze the model yourself before: Trainer's optimizer leaves out what is frozen when it is made.

    Args:
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            Which parameters learn when.
        groups (`LayerGroups`, *optional*):
            Layer groups; discovered where they are not given.
        learning_rates (`LayerwiseDecay` or `SlantedTriangular`, *optional*):
            Factors that change with the step; [`attach`] passes them.
        keep_dropout (`bool`, *optional*, defaults to `False`):
            Let frozen layers drop out as in training, as those beneath adapters always do; their BatchNorm stays still
            all the same.

    Raises:
        ValueError: At the start of training, if schedule, model and arguments do not fit together.
        RuntimeError: At the start of training, if the optimizer lacks parameters that shall learn.

    Example:
    ```python
    >>> freezing = FreezingCallback(GradualUnfreezing())
    >>> trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[freezing])
    ```
    """

    _why_missing = (
        "they were frozen when Trainer made it and would never train. Do not freeze the model yourself before "
        "training, or use `attach(trainer, schedule=...)`."
    )

    def __init__(
        self,
        schedule: Any,
        *,
        groups: LayerGroups | None = None,
        learning_rates: Any = None,
        keep_dropout: bool = False,
    ) -> None:
        self.keep_dropout, self._calm_beneath = keep_dropout, False
        self.schedule, self.groups, self.learning_rates = schedule, groups, learning_rates
        self.phases: list[dict[str, Any]] = []
        self._still: FrozenModules | None = None
        self._found: list[str] = []
        self._learning: frozenset[str] = frozenset()
        self._thawed_at: dict[str, int] = {}
        self._rates: list[float] = []
        self._agreement: RankAgreement | None = None
        self._fixed: frozenset[str] | None = None
        self._inputs: InputGradients | None = None
        self._flags: HeldFlags | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks that the parts fit, solves the head of LP-FT, and freezes."""
        model, optimizer = trained_model(kwargs), kwargs["optimizer"]
        self._refuse_flattened(model)
        groups = self.groups = fitting_groups(self.groups, model)
        facts = {
            "schedule": self.schedule.to_dict(),
            "choice of learning rates": None if self.learning_rates is None else self.learning_rates.to_dict(),
            "list of layer groups": [group.name for group in groups],
        }
        members = [[group.name, group.parameters] for group in groups]
        require_same(facts | {"members of the layer groups": members, "number of steps": state.max_steps}, args.device)
        self._check(args, model, groups, optimizer, kwargs["lr_scheduler"])
        if self._still is None:
            self._found = [n for n, parameter in parameters_by_name(model).items() if parameter.requires_grad]
        else:  # The run before broke off: the model is still as that run froze it.
            self._still.release()
        adapted = bool(locked_parameters(model))
        # PEFT leaves the base as it is in training; what its layers drop out belongs to the adapters' regularisation.
        drops = self.keep_dropout or (adapted and not self._calm_beneath)
        self._still = FrozenModules(model, keep_dropout=drops)
        if self._flags is not None:
            self._flags.release()
        self._flags = HeldFlags(model) if adapted else None
        self._rate_groups = self._groups_of(optimizer, model, groups)
        if isinstance(self.schedule, LinearProbeThenFineTune) and state.global_step == 0:
            solve_output_layer(model, groups, kwargs["train_dataloader"], self.schedule)
        fixed = isinstance(self.schedule, FreezingPolicy)
        self._fixed = self.schedule(model, groups) if fixed else None
        remember_run(state, facts)
        state.stateful_callbacks[STATE_KEY]["processes"] = args.world_size
        self._agreement = RankAgreement(model, groups, args.device)
        self._replay(args, state, model)
        if self._inputs is not None:
            self._inputs.forget()
        self._inputs = InputGradients(model, args)
        self._apply(self._learning_at(progress_of(args, state), model), state, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Freezes and thaws where the schedule says so, and sets the rates of the step."""
        model, optimizer = trained_model(kwargs), kwargs["optimizer"]
        learning = self._learning_at(progress_of(args, state), model)
        if learning != self._learning:
            self._apply(learning, state, model)
        if self.learning_rates is not None and self.learning_rates.changes_with_step:
            values = kwargs["lr_scheduler"].get_last_lr()
            for group, name, value in zip(optimizer.param_groups, self._rate_groups, values, strict=True):
                since = self._thawed_at.get(name or "", 0)
                group["lr"] = value * self.learning_rates.factor(state.global_step, since, state.max_steps)
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compares between the processes what a schedule that follows the evaluations makes of this one."""
        if self._still is None or not getattr(self.schedule, "needs_evaluation", False):
            return
        progress = progress_of(args, state)
        measured = [entry[progress.metric] for entry in state.log_history if progress.metric in entry]
        learning = sorted(self._learning_at(progress, trained_model(kwargs)))
        require_same({f"measured `{progress.metric}`": measured[-1:], "groups that it thaws": learning}, args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compares all weights between the processes before they are saved."""
        if control.should_save and self._agreement is not None:
            self._agreement.check_all(state.global_step)

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compares them behind a save that was not announced (`save_strategy="best"`)."""
        if self._agreement is not None:
            self._agreement.check_all(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the number of trainable parameters and the rate of each learning group, where the loss is logged."""
        if not logs or "loss" not in logs or not self.phases:
            return
        extra: dict[str, Any] = {"trainable_parameters": self.phases[-1]["trainable_parameters"]}
        learning = self.phases[-1]["groups"]
        for name, rate in reversed(list(zip(self._rate_groups, self._rates, strict=True))):
            if name in learning:
                extra[f"learning_rate/{name}"] = rate
        logs.update(extra)
        if state.log_history and state.log_history[-1].get("loss") == logs["loss"]:
            state.log_history[-1].update(extra)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the model as it was found: hooks removed, the same parameters trainable."""
        if self._still is not None:
            self._still.release()
            self._still = None
            if self._inputs is not None:
                self._inputs.release()
            if self._flags is not None:
                self._flags.release()
            set_trainable(trained_model(kwargs), self._found)

    def _check(self, args: Any, model: nn.Module, groups: LayerGroups, optimizer: Any, scheduler: Any) -> None:
        require_evaluation(self.schedule, args)
        changing = self.learning_rates is not None and self.learning_rates.changes_with_step
        if changing and not isinstance(scheduler, LambdaLR):
            raise ValueError(
                "Rates that change after a thaw need a scheduler that computes each rate anew (linear, cosine, "
                f"constant ...), but got {type(scheduler).__name__}. Use `warmup_steps=0` or another "
                "`lr_scheduler_type`."
            )
        if not isinstance(self.schedule, FreezingPolicy):
            check_ddp(args, sharded=is_sharded(model))
        learning = ever_learning_names(self.schedule, model, groups)
        first = learning_names(self.schedule, Progress(0, 2), model, groups) if allocates_ranks(model) else learning
        if allocates_ranks(model) and any(name not in first for g in groups.open for name in g.parameters):
            raise ValueError(
                "AdaLoRA scores all its ranks at every step, so none of its layers may be frozen. Use the strategy "
                "`full`, or `lora` with this one."
            )
        if isinstance(optimizer, DeepSpeedOptimizerWrapper):
            # It holds flat partitions; what they were made of only `attach` knows.
            self._check_flat()
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = parameters_by_name(model)
        missing = sorted(name for name in learning if id(named[name]) not in held)
        if missing:
            raise RuntimeError(
                f"The optimizer must hold every parameter that will ever learn, but lacks {len(missing)}, e.g. "
                f"{missing[0]!r}: {self._why_missing}"
            )

    def _refuse_flattened(self, model: nn.Module) -> None:
        alike = self.learning_rates is None and getattr(self.schedule, "name", "") in {"full", "as-found"}
        if not alike and is_flattened(model):
            raise ValueError(FLATTENED)

    def _check_flat(self) -> None:
        raise ValueError(
            "DeepSpeed fixes the trainable parameters when it starts, before this callback freezes any. Use "
            "`attach(trainer, schedule=...)` with a fixed policy such as `freeze_first(k)`."
        )

    def _groups_of(self, optimizer: Any, model: nn.Module, groups: LayerGroups) -> list[str | None]:
        return groups_of(optimizer, model, groups)

    def _replay(self, args: Any, state: Any, model: nn.Module) -> None:
        """Works out the phases before a resumed step, for the thaw steps and the record."""
        self.phases, self._thawed_at, self._learning = [], {}, frozenset()
        steps: Any = range(state.global_step if self._fixed is None else min(state.global_step, 1))
        if getattr(self.schedule, "needs_evaluation", False):
            steps = sorted({0, *(entry.get("step", 0) for entry in state.log_history)} - {state.global_step})
        for step in steps:
            learning = self._learning_at(progress_of(args, state, step), model)
            if learning != self._learning:
                self._note(learning, step, model)
        if self.phases:
            remember_run(state, {"last phase": self.phases[-1]["groups"]})

    def _learning_at(self, progress: Progress, model: nn.Module) -> frozenset[str]:
        assert self.groups is not None
        return self._fixed if self._fixed is not None else learning_names(self.schedule, progress, model, self.groups)

    def _note(self, learning: frozenset[str], step: int, model: nn.Module) -> None:
        assert self.groups is not None
        names = [group.name for group in self.groups if any(n in learning for n in group.parameters)]
        before = self.phases[-1]["groups"] if self.phases else []
        self._thawed_at.update({name: step for name in names if name not in before})
        self._learning = learning
        count = sum(p.numel() for n, p in parameters_by_name(model).items() if n in learning)
        self.phases.append({"step": step, "groups": names, "trainable_parameters": count})

    def _apply(self, learning: frozenset[str], state: Any, model: nn.Module) -> None:
        set_trainable(model, learning)
        assert self._still is not None
        self._still.update(learning)
        if self._flags is not None:
            self._flags.hold(learning)
        if learning != self._learning:
            self._note(learning, state.global_step, model)
            state.stateful_callbacks[STATE_KEY]["last phase"] = self.phases[-1]["groups"]
        assert self._agreement is not None
        self._agreement.check_sample(learning, state.global_step)
        logger.info(
            "Step %d: %s learn (%s parameters).",
            state.global_step,
            ", ".join(self.phases[-1]["groups"]),
            f"{self.phases[-1]['trainable_parameters']:,}",
        )


def fitting_groups(groups: LayerGroups | None, model: nn.Module) -> LayerGroups:
    """
    Args:
        groups (`LayerGroups`, *optional*):
            Layer groups of this model, or of the one before it that `model_init` made.
        model (`nn.Module`):
            The model.

    Returns:
        `LayerGroups`: Those given where they hold the model's parameters by name; else found anew.
    """
    if groups is None:
        return discover_layer_groups(model)
    if {n for group in groups for n in group.parameters} == set(parameters_by_name(model)):
        return groups
    return discover_layer_groups(model, groups.names if groups.rule.startswith("patterns") else None)


def require_evaluation(schedule: Any, args: Any) -> None:
    """
    Args:
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            What decides which parameters learn.
        args (`TrainingArguments`):
            The arguments.

    Raises:
        ValueError: If the schedule follows evaluations and there are none.
    """
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    if getattr(schedule, "needs_evaluation", False) and strategy == "no":
        raise ValueError(
            f"`{schedule.name}` follows the evaluations, but `eval_strategy` is no. Set it to epoch or steps."
        )


def trained_model(kwargs: dict[str, Any]) -> Any:
    """
    Args:
        kwargs (`dict[str, Any]`):
            What Trainer hands to a callback.

    Returns:
        `nn.Module`: The model; SetFit hands its own object over as `model`, and the network inside it as `st_model`.
    """
    return kwargs.get("st_model", kwargs["model"])
