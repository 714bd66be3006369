"""What a skipped module would have returned, without its values: shapes follow from the shapes that go in."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

Shapes = list[tuple[int, ...]]
# A size counts as constant once the sizes that go in have differed by this factor without moving it.
_SPREAD = 1.5
_PLAIN = (int, float, str, torch.dtype, type(None))


@dataclass
class _Rule:
    """Outputs of one kind of call: leaves that are an input again, values that stay, and tensors of some shape."""

    spec: TreeSpec
    aliases: dict[int, int]
    values: dict[int, Any]
    kinds: dict[int, torch.dtype]
    seen: list[tuple[Shapes, dict[int, tuple[int, ...]]]] = field(default_factory=list)
    known: dict[Any, tuple[int, ...] | None] = field(default_factory=dict)

    def saw(self, into: Shapes) -> bool:
        """Whether these very shapes went in."""
        return any(shapes == into for shapes, _ in self.seen)

    def shape(self, leaf: int, into: Shapes) -> tuple[int, ...] | None:
        """The shape of a leaf, where all that was seen agrees on it."""
        key = leaf, tuple(into), len(self.seen)
        if key not in self.known:
            self.known[key] = self._inferred(leaf, into)
        return self.known[key]

    def _inferred(self, leaf: int, into: Shapes) -> tuple[int, ...] | None:
        for shapes, found in self.seen:
            if shapes == into:
                return found[leaf]
        ranks = {len(found[leaf]) for _, found in self.seen}
        if len(ranks) > 1:
            return None
        sizes = [self._size(leaf, dim, into) for dim in range(ranks.pop())]
        return None if None in sizes else tuple(size for size in sizes if size is not None)

    def _size(self, leaf: int, dim: int, into: Shapes) -> int | None:
        seen = [(shapes, found[leaf][dim]) for shapes, found in self.seen]
        guesses = {
            into[i][j]
            for i, shape in enumerate(into)
            for j in range(len(shape))
            if all(shapes[i][j] == size for shapes, size in seen)
        }
        if len({size for _, size in seen}) == 1 and (guesses or self._varied(into)):
            guesses.add(seen[0][1])
        return guesses.pop() if len(guesses) == 1 else None

    def _varied(self, into: Shapes) -> bool:
        """Whether every size that is new now has been seen to vary widely."""
        for i, shape in enumerate(into):
            for j, size in enumerate(shape):
                before = [shapes[i][j] for shapes, _ in self.seen]
                if size not in before and max(before) < _SPREAD * min(before):
                    return False
        return True


class OutputShapes:
    """
    Learns, from the calls of a module that it sees, what the module returns: which outputs are inputs handed on, which
    sizes are sizes of an input, and which never change.

    Its placeholders are one zero in any shape; `solid` ones, which a model may write into, take memory and time.
    """

    def __init__(self) -> None:
        self.solid = False
        self._rules: dict[Any, list[_Rule]] = {}

    def observe(self, inputs: Any, output: Any) -> None:
        """
        Args:
            inputs (`tuple`):
                Arguments and keyword arguments of a call.
            output (`Any`):
                What it returned.
        """
        into, key, shapes = _facts(inputs)
        leaves, spec = tree_flatten(output)
        places = {id(leaf): i for i, leaf in enumerate(into) if not isinstance(leaf, _PLAIN)}
        aliases = {i: places[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in places}
        tensors = {i: t for i, t in enumerate(leaves) if isinstance(t, torch.Tensor) and i not in aliases}
        values = {i: leaf for i, leaf in enumerate(leaves) if i not in aliases and i not in tensors}
        kinds = {i: t.dtype for i, t in tensors.items()}
        rules = self._rules.setdefault(key, [])
        # A list with one tensor for each row is of another kind in each batch.
        rule = next((r for r in rules if (r.spec, r.aliases, r.kinds) == (spec, aliases, kinds)), None)
        if rule is None:
            rule = _Rule(spec, aliases, values, kinds)
            rules.append(rule)
        rule.seen.append((shapes, {i: tuple(t.shape) for i, t in tensors.items()}))

    def placeholder(self, inputs: Any, *, noise: bool = False) -> Any:
        """
        Args:
            inputs (`tuple`):
                Arguments and keyword arguments of a call.
            noise (`bool`, *optional*, defaults to `False`):
                Fill floating-point tensors with noise instead of zeros.

        Returns:
            `Any` or `None`: Tensors of the shapes that the module would return; `None` where they cannot be told.
        """
        into, key, shapes = _facts(inputs)
        rules = self._rules.get(key, [])
        rule = next((r for r in rules if r.saw(shapes)), rules[0] if len(rules) == 1 else None)
        if rule is None:
            return None
        device = next((leaf.device for leaf in into if isinstance(leaf, torch.Tensor)), torch.device("cpu"))
        leaves: list[Any] = []
        for i in range(rule.spec.num_leaves):
            if i in rule.aliases:
                leaves.append(into[rule.aliases[i]])
            elif i in rule.values:
                leaves.append(rule.values[i])
            else:
                shape = rule.shape(i, shapes)
                if shape is None:
                    return None
                kind = rule.kinds[i]
                if noise and kind.is_floating_point:
                    leaves.append(torch.randn(shape, dtype=kind, device=device))
                elif self.solid:
                    leaves.append(torch.zeros(shape, dtype=kind, device=device))
                else:
                    leaves.append(torch.zeros((), dtype=kind, device=device).expand(shape))
        return tree_unflatten(leaves, rule.spec)


def _facts(inputs: Any) -> tuple[list[Any], Any, Shapes]:
    leaves, _ = tree_flatten(inputs)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    on = torch.is_autocast_enabled(tensors[0].device.type) if tensors else False
    return leaves, (on, tuple(inputs[1]), tuple(_kind(leaf) for leaf in leaves)), [tuple(t.shape) for t in tensors]


def _kind(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype, leaf.ndim
    return leaf if isinstance(leaf, _PLAIN) else type(leaf)


def computed_without_values(call: Any, inputs: Any) -> tuple[Any, Any]:
    """
    Runs a module on tensors that have a shape but no values, which costs next to nothing.

    Args:
        call (`Callable`):
            The module's forward.
        inputs (`tuple`):
            Arguments and keyword arguments.

    Returns:
        `tuple`: The inputs as they went in, and what came out; for [`OutputShapes.observe`].
    """
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        args, kwargs = tree_map_only(torch.Tensor, mode.from_tensor, inputs)
        return (args, kwargs), call(*args, **kwargs)
