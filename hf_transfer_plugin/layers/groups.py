"""The nouns: a layer group, and the ordered sequence of all of them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from torch import nn

from hf_transfer_plugin.layers.naming import parameters_by_name


@dataclass(frozen=True)
class LayerGroup:
    """
    Parameters that are frozen, thawed and rated together.

    Args:
        name (`str`):
            `"embeddings"`, `"layer.3"`, `"head"`, ...
        parameters (`tuple[str, ...]`):
            Names as in `model.named_parameters()`.
    """

    name: str
    parameters: tuple[str, ...]


def check_patterns(patterns: Sequence[str]) -> None:
    """
    Args:
        patterns (`Sequence[str]`):
            Regular expressions.

    Raises:
        ValueError: If one is none.
    """
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"A pattern must be a regular expression, but {pattern!r} is not: {error}. Write a bracket or dot "
                "that stands for itself with a backslash before it."
            ) from error


class LayerGroups(Sequence[LayerGroup]):
    """
    All parameters of a model in groups, input first and head last; every parameter stands in exactly one group.
    Printing it gives a table.

    Args:
        groups (`Sequence[LayerGroup]`):
            The groups.
        model (`nn.Module`):
            The model they were found in; sizes are counted from it, it is not kept.
        rule (`str`):
            Which rule found them.
        verified (`bool`):
            Whether a forward pass confirmed the order.
        tied_head (`bool`):
            Whether the output layer shares its weights with the embeddings, so that there is no head group.
        locked (`frozenset[str]`):
            Parameters that no strategy lets learn: the base weights beneath adapters, and a tower that is frozen.

    Raises:
        ValueError: If a parameter of the model stands in no group or in two.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        model: nn.Module,
        *,
        rule: str,
        verified: bool,
        tied_head: bool = False,
        locked: frozenset[str] = frozenset(),
    ) -> None:
        self._groups = tuple(group for group in groups if group.parameters)
        self.rule, self.verified, self.tied_head, self.locked = rule, verified, tied_head, locked
        sizes = {name: parameter.numel() for name, parameter in parameters_by_name(model).items()}
        listed = [name for group in self._groups for name in group.parameters]
        wrong = sorted(
            (set(sizes) ^ set(listed)) | {name for name in listed if listed.count(name) > 1 and len(listed) < 2000}
        )
        if wrong or len(listed) != len(sizes):
            raise ValueError(
                f"Every parameter of {type(model).__name__} must stand in exactly one layer group, but these do not: "
                f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}. Add a pattern that matches them."
            )
        self.sizes = tuple(sum(sizes[name] for name in group.parameters) for group in self._groups)
        left = ((g.name, tuple(n for n in g.parameters if n not in locked)) for g in self._groups)
        self._open = tuple(LayerGroup(name, parameters) for name, parameters in left if parameters)
        self.open_sizes = {group.name: sum(sizes[name] for name in group.parameters) for group in self.open}
        self.model_name = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__

    @overload
    def __getitem__(self, index: int) -> LayerGroup: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerGroup, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerGroup | tuple[LayerGroup, ...]:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[LayerGroup]:
        return iter(self._groups)

    @property
    def names(self) -> tuple[str, ...]:
        """
        Returns:
            `tuple[str, ...]`: Names of the groups, input first.
        """
        return tuple(group.name for group in self._groups)

    @property
    def open(self) -> tuple[LayerGroup, ...]:
        """
        Returns:
            `tuple[LayerGroup, ...]`: What strategies choose from: the groups without locked parameters, those left out
            that hold nothing else. Of a model without adapters these are all groups.
        """
        return self._open

    @property
    def has_head(self) -> bool:
        """
        Returns:
            `bool`: Whether the last group is a task head of its own.
        """
        return self.names[-1] == "head"

    def require_head(self, strategy: str) -> None:
        """
        Refuses a strategy that trains or solves only the head, where there is none.

        Args:
            strategy (`str`):
                Name of the strategy, for the message.

        Raises:
            ValueError: If the model has no head group.
        """
        locked = self.has_head and "head" not in self.open_sizes
        if not self.has_head or locked:
            why = (
                "its output layer shares its weights with the embeddings" if self.tied_head else "it has no task head"
            )
            if locked:
                why = "its head is frozen (name it in `modules_to_save`)"
            raise ValueError(
                f"`{strategy}` needs a head group of its own, but {self.model_name!r} has none: {why}. "
                "Use `gradual-unfreezing` or `freeze-first`, or a model class with a head."
            )

    def summary(self) -> str:
        """
        Returns:
            `str`: The names shortened for a message, e.g. `"embeddings, layer.0 ... layer.11, head"`.
        """
        names = [group.name for group in self.open] or self.names
        return ", ".join(names) if len(names) <= 5 else f"{names[0]}, {names[1]} ... {names[-2]}, {names[-1]}"

    def __str__(self) -> str:
        total = max(sum(self.sizes), 1)
        width = max(len(name) for name in self.names) + 2
        can, sizes = bool(self.locked), self.open_sizes
        lines = [f"{'':>4}  {'group':<{width}}{'parameters':>14}{'share':>9}{'can learn' if can else '':>{14 * can}}"]
        lines += [
            f"{i:>4}  {group.name:<{width}}{size:>14,}{size / total:>9.1%}"
            + (f"{sizes.get(group.name, 0):>14,}" if can else "")
            for i, (group, size) in enumerate(zip(self._groups, self.sizes, strict=True))
        ]
        lines.append(
            f"{'':>4}  {'total':<{width}}{total:>14,}" + (f"{'':>9}{sum(sizes.values()):>14,}" if can else "")
        )
        lines.append(f"found by: {self.rule} ({'verified by a forward pass' if self.verified else 'unverified'})")
        if self.tied_head:
            lines.append("The output layer shares its weights with the embeddings: there is no head group.")
        return "\n".join(lines)

    __repr__ = __str__
