"""What must hold of the layer groups of a model: four checks that share no code with the discovery of groups."""

import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from benchmarks.tiny_inputs import noise
from hf_transfer_plugin import LayerGroups
from hf_transfer_plugin.freezing import set_trainable

# Parameters of the base model that count as head: poolers, and what joins two towers.
INTENDED = re.compile(r"pool|logit_scale|logit_bias|projection|vision_model\.head\.")
VANISHED = 1e-30


class FirstUses(TorchDispatchMode):
    """
    Notes at which operation each parameter is first read. It sees operations, not modules: neither hooks nor the
    order of registration play a part.

    Args:
        model (`nn.Module`):
            The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.moments: dict[str, int] = {}
        self.clock = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.clock += 1
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.names:
                self.moments.setdefault(self.names[id(leaf)], self.clock)
        return func(*args, **(kwargs or {}))


def check_partition(model: nn.Module, groups: LayerGroups) -> list[str]:
    """
    Every parameter stands in exactly one group.

    Args:
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its groups.

    Returns:
        `list[str]`: Faults.
    """
    listed = [name for group in groups for name in group.parameters]
    expected = [name for name, _ in model.named_parameters()]
    return [] if sorted(listed) == sorted(expected) else ["partition: a parameter is missing or stands twice"]


def check_order(model: nn.Module, groups: LayerGroups, inputs: Mapping[str, Any]) -> list[str]:
    """
    All parameters of a group are first read before any of the next; those of `embeddings` may be read later too (a
    decoder's, or relative positions), but the first of all must be one of them. Towers side by side count singly.

    Args:
        model (`nn.Module`):
            The model, in eval mode.
        groups (`LayerGroups`):
            Its groups.
        inputs (`Mapping[str, Any]`):
            Inputs for its forward.

    Returns:
        `list[str]`: Faults, groups that were never read among them.
    """
    with torch.no_grad(), FirstUses(model) as uses:
        model(**inputs)
    moments = {group.name: {n: uses.moments[n] for n in group.parameters if n in uses.moments} for group in groups}
    faults = [f"order: {name} does not run" for name, read in moments.items() if not read]
    ran = {name: read for name, read in moments.items() if read}
    if "embeddings" in ran:
        first = ran.pop("embeddings")
        late = [name for name, read in ran.items() if min(read.values()) < min(first.values())]
        faults += [f"order: {name} runs before embeddings" for name in late[:1]]
    names = list(ran)
    for one, other in zip(names, names[1:], strict=False):
        before, after = ran[one], ran[other]
        for tower in _roots(before, after, groups.rule):
            last = max(((m, n) for n, m in before.items() if n.startswith(tower)), default=(-1, ""))
            next_ = min(((m, n) for n, m in after.items() if n.startswith(tower)), default=(uses.clock + 1, ""))
            if last[0] >= next_[0]:
                faults.append(f"order: {last[1]} of {one} is first read after {next_[1]} of {other}")
    return faults


def _roots(before: Mapping[str, int], after: Mapping[str, int], rule: str) -> set[str]:
    side_by_side = rule.startswith("two towers")
    return {name.split(".")[0] for name in (*before, *after)} if side_by_side else {""}


def check_head(model: nn.Module, groups: LayerGroups) -> list[str]:
    """
    Saves the headless base model, loads it into the class of the task, and looks at the parameters that are newly
    initialised: they, and an output layer of its own, lie in the head (with a tied output layer: in the last group).
    Of the base model's parameters only poolers and what joins two towers lie there.

    Args:
        model (`nn.Module`):
            The model.
        groups (`LayerGroups`):
            Its groups.

    Returns:
        `list[str]`: Faults.
    """
    last = set(groups[-1].parameters)
    own, tied = _output_layer(model)
    new = newly_initialised(model)
    faults = [f"head: {name} of the output layer lies below" for name in sorted(own - last)[:1]]
    if own and not groups.has_head:
        faults.append("head: the output layer is not tied, yet there is no head group")
    if tied and groups.has_head:
        faults.append("head: the output layer is tied, yet there is a head group")
    if new is None:
        return faults
    faults += [f"head: {name} is newly initialised but lies below" for name in sorted(new - last)[:1]]
    if groups.has_head:
        old = sorted(name for name in last - new - own if not INTENDED.search(name))
        faults += [f"head: {name} of the base model lies in the head" for name in old[:1]]
    return faults


def _output_layer(model: nn.Module) -> tuple[set[str], bool]:
    """Parameters of the output layer, if it has some of its own; and whether it shares them with an embedding."""
    try:
        output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return set(), False
    tables = [embedding, *(m for m in model.modules() if isinstance(m, nn.Embedding))]
    shared = {id(p) for table in tables if isinstance(table, nn.Module) for p in table.parameters()}
    ours = {id(p) for p in output.parameters()} if isinstance(output, nn.Module) else set()
    own = {name for name, p in model.named_parameters() if id(p) in ours}
    return (set(), True) if ours & shared else (own, False)


def newly_initialised(model: nn.Module) -> set[str] | None:
    """
    Args:
        model (`nn.Module`):
            A model for a task.

    Returns:
        `set[str]` or `None`: Names of the parameters that a checkpoint of the base model does not hold; `None` where
        the class has no base model of its own, or the base's checkpoint lacks even the input embeddings.
    """
    base = base_of(model)
    if base is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        _, report = type(model).from_pretrained(folder, config=model.config, output_loading_info=True)
    names = {name for name, _ in model.named_parameters()}
    new = {name for name in report["missing_keys"] if name in names}
    tables = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return None if new & tables else new


def base_of(model: nn.Module) -> nn.Module | None:
    """The headless model of the same config: what `AutoModel` gives, or the part that the class calls its base."""
    if model.base_model is not model:
        return model.base_model
    listed = MODEL_MAPPING_NAMES.get(model.config.model_type)
    for name in listed if isinstance(listed, (list, tuple)) else [listed]:
        base_class = getattr(transformers, name, None) if name else None
        if base_class is not None and base_class is not type(model):
            return base_class(model.config)
    return None


def check_thaw(model: nn.Module, groups: LayerGroups, inputs: Mapping[str, Any]) -> list[str]:
    """
    Lets each group alone learn for one step of SGD: its parameters, and no others, get the gradient that full
    training gives them, and move; all others stay bitwise the same. The rate is such that the largest step is 0.1.
    Parameters without a gradient in full training are left out; a group of such alone is a fault.

    Args:
        model (`nn.Module`):
            The model, in eval mode; left in train mode where its class gives gradients in no other.
        groups (`LayerGroups`):
            Its groups.
        inputs (`Mapping[str, Any]`):
            Inputs for its forward.

    Returns:
        `list[str]`: Faults.
    """
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    try:
        full = _gradients(model, parameters, inputs)
    except (AssertionError, RuntimeError):
        model.train()
        full = _gradients(model, parameters, inputs)
    faults = []
    for group in groups:
        expected = {name for name in group.parameters if name in full}
        largest = max((full[name].abs().max().item() for name in expected), default=0.0)
        if largest < VANISHED:
            faults.append(f"thaw: no gradient reaches {group.name}")
            continue
        found = _gradients(model, group.parameters, inputs)
        torch.optim.SGD([p for p in parameters.values() if p.requires_grad], lr=0.1 / largest).step()
        moved = {name for name, p in parameters.items() if not torch.equal(p, before[name])}
        # Some gradients are rounding alone: a bias of keys before a softmax changes nothing.
        movable = {name for name in expected if full[name].abs().max() > 1e-4 * largest}
        differ = [n for n in expected & set(found) if (found[n] - full[n]).abs().max() > 1e-3 * largest]
        if set(found) != expected:
            odd = sorted(set(found) ^ expected)[0]
            faults.append(f"thaw: with {group.name} alone {odd} gets a gradient or lacks it")
        elif differ:
            faults.append(f"thaw: with {group.name} alone {differ[0]} gets another gradient than in full training")
        elif not movable <= moved <= set(group.parameters):
            odd = sorted((movable - moved) | (moved - set(group.parameters)))[0]
            faults.append(f"thaw: with {group.name} alone {odd} moves or stays")
        with torch.no_grad():
            for name in moved:
                parameters[name].copy_(before[name])
    set_trainable(model, parameters)
    return faults


def _gradients(model: nn.Module, learning: Iterable[str], inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The gradients of one backward pass in which only the named parameters learn."""
    set_trainable(model, learning)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    total = loss(model(**inputs))
    if total is not None:
        total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss(outputs: Any) -> torch.Tensor | None:
    """A number that depends on every differentiable output: each one's product with fixed noise, summed."""
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    found = [t for t in tree_leaves(list(values)) if isinstance(t, torch.Tensor) and t.requires_grad]
    terms = [(t * noise(*t.shape)).masked_fill(~torch.isfinite(t), 0).sum() for t in found if t.is_floating_point()]
    return torch.stack([term.double() for term in terms]).sum() if terms else None
