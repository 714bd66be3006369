"""The adapters by name: which of PEFT's configurations each is, and with which settings."""

from dataclasses import dataclass, field, fields
from typing import Any

from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    AdaLoraConfig,
    BOFTConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftType,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
)

OWN_FIELDS = ("name", "layers", "also_train", "ratio")
# LoRA that begins as a part of the base's weights, which it takes out of them.
FROM_WEIGHTS = ("pissa", "olora", "corda")
UNKNOWN_STEPS = 10**9  # until the run says how many there are


@dataclass(frozen=True)
class Method:
    """
    An adapter that can be named.

    Args:
        config (`type[PeftConfig]`):
            PEFT's configuration.
        targets (`str`):
            What it sits in: `"linear"` layers, `"norm"`s, the `"embedding"`, or `"prompt"`s before the text.
        settings (`dict[str, Any]`, *optional*):
            Fields that differ from PEFT's defaults.
        learning_rate (`float`, *optional*, defaults to 1e-3):
            Rate to start from; about ten times that of full fine-tuning for LoRA
            (https://thinkingmachines.ai/blog/lora/), more where fewer numbers learn.
    """

    config: type[PeftConfig]
    targets: str
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 1e-3


# No dropout: at 0.05 it took a fifth of the time and 30% of the activations of MiniLM and SmolLM2.
_LORA = {"r": 16, "lora_alpha": 32}
_PROMPT = {"num_virtual_tokens": 20}
METHODS: dict[str, Method] = {
    "lora": Method(LoraConfig, "linear", _LORA),
    "dora": Method(LoraConfig, "linear", {**_LORA, "use_dora": True}),
    # Scaled by the root of the rank: alpha 8 at rank 16 is LoRA's factor of 2.
    "rslora": Method(LoraConfig, "linear", {**_LORA, "lora_alpha": 8, "use_rslora": True}),
    # Their start is a part of the weights themselves, so the factor is 1 and nothing is dropped out.
    "pissa": Method(LoraConfig, "linear", {"r": 16, "lora_alpha": 16, "init_lora_weights": "pissa"}, 2e-4),
    "olora": Method(LoraConfig, "linear", {"r": 16, "lora_alpha": 16, "init_lora_weights": "olora"}, 2e-4),
    "lora+": Method(LoraConfig, "linear", _LORA, 2e-4),
    "adalora": Method(
        AdaLoraConfig,
        "linear",
        {"init_r": 12, "target_r": 8, "lora_alpha": 32, "total_step": UNKNOWN_STEPS},
        2e-3,
    ),
    "ia3": Method(IA3Config, "linear", {}, 5e-3),
    "vera": Method(VeraConfig, "linear", {"r": 256, "d_initial": 0.1}, 1e-2),
    "oft": Method(OFTConfig, "linear", {"oft_block_size": 32, "use_cayley_neumann": False}, 1e-3),
    "boft": Method(BOFTConfig, "linear", {"boft_block_size": 8, "boft_n_butterfly_factor": 1}, 1e-3),
    "ln-tuning": Method(LNTuningConfig, "norm", {}, 1e-3),
    "trainable-tokens": Method(TrainableTokensConfig, "embedding", {}, 1e-3),
    "prefix": Method(PrefixTuningConfig, "prompt", _PROMPT, 1e-2),
    "prompt": Method(PromptTuningConfig, "prompt", _PROMPT, 3e-2),
    "p-tuning": Method(PromptEncoderConfig, "prompt", {**_PROMPT, "encoder_hidden_size": 128}, 1e-3),
}


def method_of(spec: dict[str, Any]) -> Method:
    """
    Args:
        spec (`dict[str, Any]`):
            An adapter with `"name"`, or with `"peft_type"` as PEFT writes it.

    Returns:
        `Method`: The named one, or PEFT's with its own defaults.

    Raises:
        ValueError: If PEFT has no such type, or its configuration no such field.
    """
    if "name" in spec:
        method = METHODS[spec["name"]]
    else:
        kind = str(spec["peft_type"]).upper()
        if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
            known = ", ".join(sorted(str(getattr(k, "value", k)) for k in PEFT_TYPE_TO_CONFIG_MAPPING))
            raise ValueError(f"`peft_type` must be one of {known}, but got {spec['peft_type']!r}.")
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
        prompts = any(f.name == "num_virtual_tokens" for f in fields(config))
        targets = {"LN_TUNING": "norm", "TRAINABLE_TOKENS": "embedding"}.get(kind, "linear")
        method = Method(config, "prompt" if prompts else targets)
    known_fields = {f.name for f in fields(method.config) if f.init}
    unknown = sorted(set(spec) - known_fields - set(OWN_FIELDS) - {"peft_type"})
    if unknown:
        raise ValueError(
            f"{method.config.__name__} has no field {unknown[0]!r}; it has {', '.join(sorted(known_fields))}, and for "
            f"any adapter there are {', '.join(OWN_FIELDS[1:])}."
        )
    if "ratio" in spec and spec.get("name") != "lora+":
        raise ValueError("`ratio` is LoRA+'s, the rate of B over that of A; name the adapter `lora+`.")
    return method


def kind_of(config: PeftConfig) -> str:
    """
    Args:
        config (`PeftConfig`):
            An adapter's configuration.

    Returns:
        `str`: PEFT's name of the method, e.g. `"LORA"`.
    """
    return str(getattr(config.peft_type, "value", config.peft_type))


def learning_rate_of(spec: dict[str, Any]) -> float:
    """
    Args:
        spec (`dict[str, Any]`):
            An adapter.

    Returns:
        `float`: The rate to start from.
    """
    return METHODS[spec["name"]].learning_rate if "name" in spec else Method.learning_rate


def ratio_of(spec: dict[str, Any]) -> float:
    """
    Args:
        spec (`dict[str, Any]`):
            An adapter.

    Returns:
        `float`: The rate of LoRA's matrices B over that of A: LoRA+'s ratio (https://huggingface.co/papers/2402.12354),
        16 without another, and 1 for all other adapters.
    """
    return float(spec.get("ratio", 16.0)) if spec.get("name") == "lora+" else 1.0
