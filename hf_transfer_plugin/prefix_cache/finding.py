"""Finds the deepest place from which a model can be run on stored tensors, and proves that this is the same."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from hf_transfer_plugin.freezing import set_trainable, still_modules
from hf_transfer_plugin.layers import parameters_by_name, unwrapped_name
from hf_transfer_plugin.layers.probe import untouched
from hf_transfer_plugin.prefix_cache.cuts import CannotCacheError, Cut, results
from hf_transfer_plugin.prefix_cache.passage import Address, Passage
from hf_transfer_plugin.prefix_cache.traces import Trace, first_live, trace

# Of cuts that skip at least this share of the most that can be skipped, the one that stores least.
_WORTH = 0.9
_ATTEMPTS = 12


def find_cut(model: nn.Module, learning: frozenset[str], probes: Sequence[Mapping[str, Any]]) -> Cut:
    """
    Finds the deepest place from which a model can be run on stored tensors, and proves on batches that outputs and
    gradients are the same bit for bit, and that they are others where noise is fed.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        learning (`frozenset[str]`):
            Names of the parameters that learn.
        probes (`Sequence[Mapping[str, Any]]`):
            Batches on the model's device, if possible of different size and length.

    Returns:
        `Cut`: The cut.

    Raises:
        CannotCacheError: If there is no such place, with the reason.
    """
    traces = [trace(model, probe) for probe in probes]
    still = still_modules(model, learning)
    first = first_live(model, learning, still, traces[0])
    reasons: list[str] = []
    found: list[tuple[int, int, int, Cut]] = []
    with _prepared(model, learning):
        prover = _Prover(model, learning, probes, still, traces)
        proved: dict[tuple[str, ...], int] = {}
        # From the outside in; further in only where less is handed over.
        for fed in reversed(_ancestors(first)):
            skipped = prover.skippable(fed)
            elements = traces[0].elements.get(fed, 0)
            if not skipped or elements >= proved.get(skipped, elements + 1):
                continue
            try:
                cut, size = prover.prove(fed)
            except CannotCacheError as error:
                reasons.append(f"{fed}: {error}")
                continue
            found.append((_work(model, cut.skipped), size, -len(found), cut))
            proved[skipped] = elements
    if not found:
        above = unwrapped_name(first)
        raise CannotCacheError(
            f"what lies below {above!r} cannot be replaced by stored tensors ({reasons[-1]})"
            if reasons
            else f"nothing lies below {above!r}, the first module that learns or drops out"
        )
    # One matrix more, such as the layer under an adapter, is not worth a second tensor for each row.
    enough = _WORTH * max(work for work, _, _, _ in found)
    return min((size, -work, -i, cut) for work, size, i, cut in found if work >= enough)[-1]


def _work(model: nn.Module, skipped: Sequence[str]) -> int:
    """Weights that are not run, without those that are only looked up."""
    modules = {id(m): m for name in skipped for m in model.get_submodule(name).modules()}.values()
    return sum(p.numel() for m in modules if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False))


def _ancestors(name: str) -> list[str]:
    """The module itself, what holds it, and so on; without the model."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1) if name]


@contextmanager
def _prepared(model: nn.Module, learning: frozenset[str]) -> Any:
    """Everything in eval mode, with the phase's parameters trainable, so that gradients can be compared."""
    before = [name for name, parameter in parameters_by_name(model).items() if parameter.requires_grad]
    try:
        with untouched(model), torch.enable_grad():
            set_trainable(model, learning)
            yield
    finally:
        set_trainable(model, before)


class _Prover:
    """Tries cuts of one model on the same batches."""

    def __init__(
        self,
        model: nn.Module,
        learning: frozenset[str],
        probes: Sequence[Mapping[str, Any]],
        still: Sequence[nn.Module],
        traces: Sequence[Trace],
    ) -> None:
        self.model, self.probes, self.traces = model, probes, traces
        self.parameters = [p for name, p in parameters_by_name(model).items() if name in learning]
        self.sizes = [_batch_size(probe) for probe in probes]
        quiet = {id(inner) for module in still for inner in module.modules()}
        modules = [(name, m) for name, m in model.named_modules() if id(m) in quiet]
        self.still = {name for name, m in modules if any(True for _ in m.parameters())}

    def skippable(self, fed: str, run: Collection[str] = (), *, whole: bool = False) -> tuple[str, ...]:
        """
        The outermost frozen modules that run before the fed one, and never again in the same pass; without those that
        must `run`, of which the inner ones are still skipped unless they run as a `whole`.
        """
        if any(fed not in seen.order for seen in self.traces):
            return ()
        order, moment = self.traces[0].order, self.traces[0].first(fed)
        last = {name: i for i, name in enumerate(order)}
        chosen: list[str] = []
        for name in order[:moment]:
            around = fed.startswith(f"{name}.") or not name or name in run
            if around or name not in self.still or _within(name, chosen) or (whole and _within(name, run)):
                continue
            if last[name] < moment and order.count(name) == 1:
                chosen.append(name)
        return tuple(chosen)

    def prove(self, fed: str) -> tuple[Cut, int]:
        """The cut at a module, with the elements that pass it for the first batch."""
        try:
            return self._proved(fed, whole=False)
        except CannotCacheError as error:
            try:
                return self._proved(fed, whole=True)
            except CannotCacheError:
                raise error from None

    def _proved(self, fed: str, *, whole: bool) -> tuple[Cut, int]:
        run: set[str] = set()
        shape: tuple[int, ...] = ()
        repeated = self.traces[0].order.count(fed) > 1
        for _ in range(_ATTEMPTS):
            cut = Cut(fed, self.skippable(fed, run, whole=whole), (), repeated)
            if not cut.skipped:
                break
            with cut.passage(self.model).installed() as passage:
                lives = [self._live(passage, probe) for probe in self.probes]
                cut = replace(cut, addresses=self._passed(passage, cut, lives, {}))
                odd = self._odd(cut, lives)
                if not odd:
                    cut = self._narrowed(passage, cut, lives)
                    odd = self._odd(cut, lives)
            if not odd:
                return cut, sum(v.numel() for v in cut.pick(lives[0][0]).values())
            # What depends on the whole batch, such as a position bias, is made anew by the module that makes it.
            shape = _shape(odd[0], lives)
            makers = {self._maker(address, cut, lives) for address in odd}
            if None in makers:
                break
            run |= {maker for maker in makers if maker is not None}
        raise CannotCacheError(f"it takes a tensor of shape {shape} that is not one of each row")

    def _odd(self, cut: Cut, lives: Any) -> list[Address]:
        return [address for address in cut.addresses if not self._is_of_rows(address, lives)]

    def _live(self, passage: Passage, probe: Mapping[str, Any]) -> tuple[dict[str, list[Any]], list[torch.Tensor]]:
        caught, output = passage.watch(probe)
        # The pass goes on with these very objects, and some modules write into their inputs.
        caught = {name: [v.detach() if isinstance(v, torch.Tensor) else v for v in c] for name, c in caught.items()}
        try:
            return caught, self._facts(output)
        except RuntimeError as error:
            raise CannotCacheError(f"in eval mode it has no gradients: {str(error).splitlines()[0]}") from error

    def _facts(self, output: Any) -> list[torch.Tensor]:
        """Results and gradients."""
        found = results(output)
        total = found[0] if found[0].ndim == 0 else torch.stack([r.float().square().sum() for r in found]).sum()
        wanted = [p for p in self.parameters if p.requires_grad]
        gradients = torch.autograd.grad(total, wanted, allow_unused=True) if total.requires_grad else []
        return [r.detach() for r in found] + [torch.zeros(()) if g is None else g for g in gradients]

    def _passed(self, passage: Passage, cut: Cut, lives: Any, values: Mapping[Address, torch.Tensor]) -> Any:
        """Inputs of the fed module that are others when what is skipped gives noise."""
        found: list[Address] = []
        for probe, (caught, _) in zip(self.probes, lives, strict=False):
            passage.feed(values, noise=True)
            seen: list[Any] = []
            handle = passage.modules[cut.fed].register_forward_pre_hook(_keeping(seen), with_kwargs=True)
            try:
                self.model(**probe)
            except _SeenError:
                pass
            except Exception as error:
                raise CannotCacheError(f"the model fails on placeholders: {type(error).__name__}: {error}") from error
            finally:
                handle.remove()
                passage.rest()
            if not seen or len(seen[0]) != len(caught[cut.fed]):
                raise CannotCacheError("it is called otherwise when the modules below are skipped")
            for leaf, (true, other) in enumerate(zip(caught[cut.fed], seen[0], strict=True)):
                address = Address(cut.fed, False, leaf)
                if isinstance(true, torch.Tensor) and address not in found and not _equal(true, other):
                    found.append(address)
        return tuple(found)

    def _is_of_rows(self, address: Address, lives: Any) -> bool:
        """Whether a tensor holds one entry a row, of which at most one size differs between batches."""
        values = [caught[address.module][address.leaf] for caught, _ in lives]
        if not all(isinstance(value, torch.Tensor) for value in values):
            return False
        shapes = [tuple(value.shape) for value in values]
        if any(not shape or shape[0] != size for shape, size in zip(shapes, self.sizes, strict=True)):
            return False
        if len({len(shape) for shape in shapes}) > 1:
            return False
        return sum(len(set(sizes)) > 1 for sizes in list(zip(*shapes, strict=True))[1:]) <= 1

    def _maker(self, address: Address, cut: Cut, lives: Any) -> str | None:
        """The skipped module that makes a tensor: by what it returns, else by what is right again once it runs."""
        if address.output:
            return address.module
        caught = lives[0][0]
        value = caught[address.module][address.leaf]
        for name in cut.skipped if isinstance(value, torch.Tensor) else ():
            if any(isinstance(v, torch.Tensor) and v.data_ptr() == value.data_ptr() for v in caught[name]):
                return name
        for name in cut.skipped:
            fewer = replace(cut, skipped=tuple(other for other in cut.skipped if other != name))
            with fewer.passage(self.model).installed() as passage:
                passage.watch(self.probes[0])
                if address not in self._passed(passage, fewer, lives[:1], {}):
                    return name
        return None

    def _narrowed(self, passage: Passage, cut: Cut, lives: Any) -> Cut:
        """With the outputs that later modules read too, such as an encoder's; refused where nothing is the same."""
        if self._same(passage, cut, lives):
            self._require_effect(passage, cut, lives)
            return cut
        caught = lives[0][0]
        outputs = tuple(
            Address(name, True, leaf)
            for name in cut.skipped
            for leaf, value in enumerate(caught[name])
            if isinstance(value, torch.Tensor)
        )
        everything = replace(cut, addresses=(*outputs, *cut.addresses))
        if not self._same(passage, everything, lives):
            raise CannotCacheError("outputs or gradients are not the same bit for bit")
        needed = self._needed(passage, cut, outputs, lives)
        values = {address: caught[address.module][address.leaf] for address in needed}
        inputs = self._passed(passage, cut, lives[:1], values)
        cut = replace(cut, addresses=(*needed, *inputs))
        if not self._same(passage, cut, lives):
            raise CannotCacheError("outputs or gradients are not the same bit for bit")
        self._require_effect(passage, cut, lives)
        return cut

    def _needed(self, passage: Passage, cut: Cut, outputs: Sequence[Address], lives: Any) -> list[Address]:
        """The outputs without which something differs, found by halves."""
        needed, spans = list(outputs), [list(outputs)]
        while spans:
            span = spans.pop()
            fewer = [address for address in needed if address not in span]
            if self._same(passage, replace(cut, addresses=(*fewer, *cut.addresses)), lives):
                needed = fewer
            elif len(span) > 1:
                spans += [span[len(span) // 2 :], span[: len(span) // 2]]
        return needed

    def _same(self, passage: Passage, cut: Cut, lives: Any) -> bool:
        for probe, (caught, facts) in zip(self.probes, lives, strict=True):
            try:
                found = self._facts(passage.run(probe, cut.pick(caught), noise=True))
            except Exception:  # noqa: BLE001  a model may fail in any way on what it was not made for
                return False
            if len(found) != len(facts) or not all(map(_equal, facts, found)):
                return False
        return True

    def _require_effect(self, passage: Passage, cut: Cut, lives: Any) -> None:
        """Fed with noise, the model must say something else; else the proof would prove nothing."""
        values = cut.pick(lives[0][0])
        noise = {a: torch.randn_like(v) if v.is_floating_point() else v for a, v in values.items()}
        found = self._facts(passage.run(self.probes[0], noise, noise=True))
        if all(map(_equal, lives[0][1], found)):
            raise CannotCacheError("noise in its place gives the same outputs, so nothing can be proved")


def _within(name: str, others: Collection[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in others)


class _SeenError(Exception):
    """The inputs of the fed module are known; the rest of the pass is not wanted."""


def _keeping(seen: list[Any]) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(tree_flatten((args, kwargs))[0])
        raise _SeenError

    return hook


def _equal(one: Any, other: Any) -> bool:
    return (
        isinstance(one, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and one.shape == other.shape
        and one.dtype == other.dtype
        and torch.equal(one.nan_to_num(), other.nan_to_num())
    )


def _batch_size(probe: Mapping[str, Any]) -> int:
    # Pixels of several images may be packed into one row; texts and labels never are.
    names = [*(name for name in ("input_ids", "decoder_input_ids", "labels") if name in probe), *probe]
    return next(len(probe[n]) for n in names if isinstance(probe[n], torch.Tensor) and probe[n].ndim)


def _shape(address: Address, lives: Any) -> tuple[int, ...]:
    return tuple(getattr(lives[0][0][address.module][address.leaf], "shape", ()))
