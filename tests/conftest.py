"""Tiny models, a tokenizer trained on the spot, and no network."""

import gc
import os
from collections import Counter

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from hf_transfer_plugin.layers import discover_layer_groups

HIDDEN, LAYERS, VOCABULARY = 16, 3, 120
TINY = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
}
GOOD = ["a fine warm film", "great fun and a great cast", "lovely work", "a joy to watch", "warm and funny"]
BAD = ["a dull cold film", "poor work and a poor cast", "no fun at all", "a bore to watch", "cold and flat"]

transformers.utils.logging.set_verbosity_error()
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def frozen_garbage():
    """Trainer collects garbage at each start of training, which takes half a second to look through the imports."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of the cells of a sampled matrix all but each k-th are slow tests."""
    cells = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled and "slow" not in item.keywords:
            matrix = item.nodeid.split("[")[0]
            if cells[matrix] % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            cells[matrix] += 1
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an accelerator"))


def bert(**changes):
    return BertForSequenceClassification(BertConfig(**{**TINY, **changes}))


@pytest.fixture
def model():
    return bert()


@pytest.fixture
def groups(model):
    return discover_layer_groups(model)


def rows(count=32, length=8):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(3, VOCABULARY, (length,), generator=generator),
            "attention_mask": torch.ones(length, dtype=torch.long),
            "labels": torch.tensor(i % 2),
        }
        for i in range(count)
    ]


def reviews(count=40):
    texts = [(GOOD if i % 2 else BAD)[i // 2 % 5] + f" {i}" for i in range(count)]
    return {"text": texts, "label": [i % 2 for i in range(count)]}


@pytest.fixture
def make_trainer(tmp_path):
    """A Trainer over tiny random rows; keyword arguments go to the arguments."""

    def make(model=None, cls=Trainer, callbacks=None, train=None, trainer_kwargs=None, **changes):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        args_cls = changes.pop("args_cls", TrainingArguments)
        trainer = cls(
            model=model if model is not None else bert(),
            args=args_cls(**{**defaults, **changes}),
            train_dataset=rows() if train is None else train,
            eval_dataset=rows(8),
            callbacks=callbacks,
            **(trainer_kwargs or {}),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    return make


@pytest.fixture(scope="session")
def tokenizer():
    """A word-level tokenizer with BERT's special tokens."""
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.train_from_iterator(GOOD + BAD, trainers.WordLevelTrainer(special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    """A saved tiny BERT without a head, as a pretrained model comes."""
    folder = tmp_path_factory.mktemp("pretrained") / "tiny-bert"
    set_seed(0)
    transformers.BertModel(BertConfig(**TINY)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reviews_file(tmp_path):
    """A CSV of texts and labels."""
    file = tmp_path / "reviews.csv"
    datasets.Dataset.from_dict(reviews()).to_csv(str(file), index=False)
    return str(file)
