"""A forward pass on dummy inputs that records which module ran when; it leaves the model as it was."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_transfer_plugin.layers.naming import unwrapped_model


def dummy_inputs(model: nn.Module, *, batch_size: int = 1, length: int = 8) -> Iterator[dict[str, Any]]:
    """
    Guesses inputs that a Transformers model takes, the simplest first.

    Args:
        model (`nn.Module`):
            The model.
        batch_size (`int`, *optional*, defaults to 1):
            Rows.
        length (`int`, *optional*, defaults to 8):
            Tokens of a text.

    Yields:
        `dict[str, Any]`: Keyword arguments for a forward pass.
    """
    config = getattr(model, "config", None)
    accepted = inspect.signature(unwrapped_model(model).forward).parameters
    device = next(model.parameters()).device
    makers = {
        "input_ids": lambda: _tokens(config, batch_size, length),
        "pixel_values": lambda: _pixels(config, batch_size),
        "input_features": lambda: _features(config, batch_size),
        "input_values": lambda: _waveform(config, batch_size, length),
    }
    main = getattr(model, "main_input_name", "input_ids")
    names = [name for name in dict.fromkeys((main, *makers)) if name in makers and name in accepted]
    candidates = [[name] for name in names[:1]] + ([names] if len(names) > 1 else []) + [[n] for n in names[1:]]
    for chosen in candidates:
        inputs = {name: makers[name]().to(device) for name in chosen}
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
            inputs["decoder_input_ids"] = _tokens(config, batch_size, length).to(device)
        if "input_ids" in inputs and "attention_mask" in accepted:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        yield inputs
    if not names and "input" in accepted:
        # Sentence Transformers takes its features in one dictionary.
        tokens = _tokens(config, batch_size, length).to(device)
        yield {"input": {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}}


def _setting(config: Any, *names: str, default: Any) -> Any:
    """First of `names` that the config, or its text or vision part, has a value for."""
    for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
        for name in names:
            if getattr(part, name, None) is not None:
                return getattr(part, name)
    return default


def _tokens(config: Any, batch_size: int, length: int) -> torch.Tensor:
    vocabulary = _setting(config, "vocab_size", default=100)
    tokens = torch.arange(batch_size * length).reshape(batch_size, length) % max(vocabulary - 4, 1) + min(
        3, vocabulary - 1
    )
    end = _setting(config, "eos_token_id", default=None)
    if isinstance(end, int) and 0 <= end < vocabulary:
        tokens[:, -1] = end
    return tokens.clamp(max=vocabulary - 1)


def _pixels(config: Any, batch_size: int) -> torch.Tensor:
    size = _setting(config, "image_size", default=64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.linspace(-1, 1, batch_size * _setting(config, "num_channels", default=3) * height * width).reshape(
        batch_size, -1, height, width
    )


def _features(config: Any, batch_size: int) -> torch.Tensor:
    mels = _setting(config, "num_mel_bins", default=80)
    frames = 2 * _setting(config, "max_source_positions", default=50)
    return torch.linspace(-1, 1, batch_size * mels * frames).reshape(batch_size, mels, frames)


def _waveform(config: Any, batch_size: int, length: int) -> torch.Tensor:
    samples = max(_setting(config, "max_length", default=0), 4000 + length)
    return torch.linspace(-1, 1, batch_size * samples).sin().reshape(batch_size, samples)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """
    Runs the body in eval and no_grad mode; afterwards mode, buffers and random state are as before.

    Args:
        model (`nn.Module`):
            The model.

    Yields:
        `None`
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    # BigBird leaves its sparse attention for good when it sees a short text.
    switchable: list[Any] = [m for m in model.modules() if hasattr(m, "set_attention_type")]
    sparse = [(m, m.attention_type) for m in switchable]
    cuda = [p.device for p in list(model.parameters())[:1] if p.device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for buffer, before in buffers:
                buffer.copy_(before)
            for module, kind in sparse:
                if module.attention_type != kind:
                    module.set_attention_type(kind)
                    module.train(module.training)


class CallOrder:
    """
    What a forward pass showed: for each module the moments it was entered and left, and for chosen modules the
    hidden state that went in and came out.

    Args:
        model (`nn.Module`):
            The model that was run.
        watched (`Mapping[str, nn.Module]`):
            Modules whose hidden states are kept.
    """

    def __init__(self, model: nn.Module, watched: Mapping[str, nn.Module]) -> None:
        self.entered: dict[str, int] = {}
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self._clock, self._watched = 0, set(watched)
        self._handles = []
        for name, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            if name in self._watched:
                self._handles.append(module.register_forward_hook(self._leave(name)))

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name not in self.entered:
                self._clock += 1
                self.entered[name] = self._clock
                if name in self._watched:
                    hidden = _hidden((*args, *kwargs.values()))
                    if hidden is not None:
                        self.inputs[name] = hidden

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = _hidden(output.values() if isinstance(output, Mapping) else output)
            if hidden is not None and name not in self.outputs:
                self.outputs[name] = hidden

        return hook

    def close(self) -> None:
        """Removes the hooks."""
        for handle in self._handles:
            handle.remove()

    def in_order(self, chain: Sequence[Sequence[str]]) -> bool:
        """
        Args:
            chain (`Sequence[Sequence[str]]`):
                Links of one or more modules.

        Returns:
            `bool`: Whether all of them ran, each link before the next.
        """
        moments = [[self.moment(name) for name in link] for link in chain]
        if any(-1 in link for link in moments):
            return False
        return all(max(one) < min(other) for one, other in zip(moments, moments[1:], strict=False))

    def moment(self, name: str) -> int:
        """
        Args:
            name (`str`):
                A module.

        Returns:
            `int`: When it was entered, or the first inside it where its `forward` was called past the hooks; -1 if
            it never ran.
        """
        inside = (moment for other, moment in self.entered.items() if other.startswith(f"{name}."))
        return self.entered[name] if name in self.entered else min(inside, default=-1)

    def chained(self, chain: Sequence[Sequence[str]]) -> bool:
        """
        Args:
            chain (`Sequence[Sequence[str]]`):
                Links of one watched module each.

        Returns:
            `bool`: Whether they ran in this order and each one's input is the output of the one before.
        """
        if not self.in_order(chain) or any(len(link) > 1 for link in chain):
            return False
        for (first,), (second,) in zip(chain, chain[1:], strict=False):
            out, into = self.outputs.get(first), self.inputs.get(second)
            if out is None or into is None or out.shape != into.shape or not torch.equal(out, into):
                return False
        return True


def _hidden(values: Any) -> torch.Tensor | None:
    """First floating-point tensor with at least two dimensions."""
    for value in (values,) if isinstance(values, torch.Tensor) else values or ():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 2:
            return value
        if isinstance(value, (tuple, list)) and value and isinstance(value[0], torch.Tensor):
            return value[0]
    return None


def record_calls(
    model: nn.Module, watched: Mapping[str, nn.Module], inputs: Mapping[str, Any] | None
) -> CallOrder | None:
    """
    Runs the model once and records the order of its modules.

    Args:
        model (`nn.Module`):
            The model; left as it was.
        watched (`Mapping[str, nn.Module]`):
            Modules whose hidden states are kept.
        inputs (`Mapping[str, Any]`, *optional*):
            A real batch; dummy inputs are tried without it.

    Returns:
        `CallOrder` or `None`: What was seen; `None` where no inputs could be run (also on the meta device).
    """
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        return None
    best: CallOrder | None = None
    for candidate in [inputs] if inputs is not None else dummy_inputs(model):
        order = CallOrder(model, watched)
        try:
            with untouched(model):
                model(**candidate)
        except Exception:  # noqa: BLE001  a guess at inputs may fail in any way; the caller then says "unverified"
            continue
        finally:
            order.close()
        if best is None or len(order.entered) > len(best.entered):
            best = order
    return best
