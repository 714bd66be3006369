"""What a run is asked to do, as plain values; imports no strategy and no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hf_transfer_plugin.config.faults import ConfigError
from hf_transfer_plugin.config.names import (
    ADAPTER_NAMES,
    ADAPTER_OUTPUTS,
    BASE_PRECISIONS,
    BOX_FORMATS,
    LEARNING_RATE_NAMES,
    MASK_VALUES,
    PROBLEM_TYPES,
    STRATEGY_NAMES,
    TASK_NAMES,
    TOWER_CHOICES,
)
from hf_transfer_plugin.config.problems import problems_of
from hf_transfer_plugin.config.reading import parse_adapter, parse_spec

# Meant as a switch, and no folder's name.
_NO_FOLDERS = ("auto", "off", "on", "true", "false", "yes", "no", "none")


@dataclass(frozen=True)
class TransferConfig:
    """
    One transfer-learning run. What the Trainer already has a name for (output folder, seed, rates, epochs) stays in
    `TrainingArguments`; the two share no field name.

    Args:
        model (`str`):
            Pretrained model: a Hub id or a local folder.
        dataset (`str`):
            A Hub id, a CSV/TSV/JSON/Parquet file, a folder of such files named after their splits, a folder of images
            or sounds (one folder inside for each class, or a metadata file; see ImageFolder of datasets), or a folder
            written by `Dataset.save_to_disk`.
        task (`str`, *optional*, defaults to `"text-classification"`):
            What the model shall do, named as the Hub's pipeline tags.
        strategy (`str` or `dict`, *optional*):
            Which layers learn when: a name, or a JSON object such as `{"name": "freeze-first", "k": 3}`. Without it
            what the committed comparison shows best for text classification, and `"full"` for other tasks and for
            adapters. The name of an adapter is the same as `adapter`, all of which then learns from the start.
        adapter (`str` or `dict`, *optional*):
            Train small weights inside the frozen model: a name such as `"lora"`, or a JSON object with its fields,
            `{"name": "lora", "r": 8, "layers": 3, "also_train": ["norms"]}`; see [`attach_adapter`]. `strategy` then
            chooses among these weights.
        adapter_output (`str`, *optional*, defaults to `"adapter"`):
            What the run folder holds: the `"adapter"` alone, the model with the adapter `"merged"` into it, or
            `"both"`, the merged model in the folder `merged` inside.
        base_precision (`str`, *optional*):
            Load the weights that stay frozen in `"bfloat16"` or `"float16"`, or, beneath adapters, in 8 or 4 bits:
            `"8bit"`, `"4bit"` (bitsandbytes), `"int8"` (torchao).
        learning_rates (`str` or `dict`, *optional*):
            How the rate differs between layer groups, in the same form.
        keep_dropout (`bool`, *optional*, defaults to `False`):
            Let frozen layers drop out as in training, instead of holding them wholly still.
        prefix_cache (`str`, *optional*, defaults to `"off"`):
            Store what the frozen layers make of each row, so that later epochs and runs read it: `"auto"` in the
            default folder of [`FrozenPrefixCache`], or in the folder that is named. It takes disk, and its 16 bits
            round; beneath adapters the frozen layers then drop nothing out.
        sort_micro_batches (`bool`, *optional*, defaults to `False`):
            Sort the rows of each optimizer step by length before they are cut into micro-batches; see [`attach`]. They
            are then drawn at random, instead of grouped by length, unless somebody chose otherwise.
        base_model_id (`str`, *optional*):
            Hub id that the card names as the base model, where `model` is a local folder.
        model_revision (`str`, *optional*):
            Branch, tag or commit of the model.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run code that comes with the model or dataset. Only ever on when typed.
        dataset_config (`str`, *optional*):
            Name of the dataset's configuration (subset).
        train_split (`str`, *optional*, defaults to `"train"`):
            Name of the split to learn from.
        validation_split (`str`, *optional*, defaults to `"validation"`):
            Name of the validation split. Where it is missing, a seeded, stratified part of train is held out.
        test_split (`str`, *optional*, defaults to `"test"`):
            Name of the test split, touched once, at the end.
        validation_fraction (`float`, *optional*, defaults to 0.1):
            Share of train held out where there is no validation split; 0 trains on every row and evaluates nothing
            before the end.
        max_train_samples (`int`, *optional*):
            Learn from that many rows only, drawn stratified by label with the run's seed.
        skip_unreadable (`bool`, *optional*, defaults to `False`):
            Go on without images and sounds that cannot be opened; the record counts them.
        mask_values (`str`, *optional*):
            What the pixels of `image-segmentation`'s masks hold: `numbers` of classes (255 is not labelled),
            `numbers-from-1` (0 is not labelled either, the first class is 1) or `0-and-255` (255 is the second of two
            classes). Without it `0-and-255` where there is nothing else, `numbers-from-1` where the image processor
            says `do_reduce_labels`, else `numbers`.
        text_column (`str`, *optional*):
            Column of the text. Guessed where it is not given.
        text_pair_column (`str`, *optional*):
            Column of the second text, for pairs.
        feature_columns (`list[str]` or `dict`, *optional*):
            Columns of a table that are written into one text for `text-classification`, `age: 42; self employed: no`,
            in this order; numbers without noise, `unknown` for a missing value. `"all"` takes every column but the
            label, ids and constants, and tells which it left out. A mapping from column to kind (`number`, `boolean`,
            `date`, `category`, `text`) says what they hold.
        label_column (`str`, *optional*):
            Column of the label, or of the words' tags. Guessed where it is not given.
        target_column (`str`, *optional*):
            Column of the summary, translation or answer that the model shall write.
        question_column (`str`, *optional*):
            Column of the question.
        context_column (`str`, *optional*):
            Column of the text that holds the answer.
        answers_column (`str`, *optional*):
            Column of the answers: `{"text": [...], "answer_start": [...]}` as in SQuAD, or the answer as text.
        image_column (`str`, *optional*):
            Column of the image: files, their paths or their bytes. Guessed where it is not given.
        audio_column (`str`, *optional*):
            Column of the sound, in the same forms. Guessed where it is not given.
        max_seconds (`float`, *optional*, defaults to 30):
            Of longer sounds the beginning is read, as far as the model reads so much. Where speech is transcribed they
            are left out of training, since their text tells what is not read.
        objects_column (`str`, *optional*):
            Column of the objects in a picture: `{"bbox": [...], "category": [...]}`, or a list of such. Guessed where
            it is not given; bare boxes take their classes from `label_column`.
        box_format (`str`, *optional*, defaults to `"xywh"`):
            How boxes are written: left, top, width and height in pixels as in COCO; `"xyxy"` for left, top, right and
            bottom as in Pascal VOC; `"yolo"` for centre, width and height as shares of the picture.
        score_threshold (`float`, *optional*, defaults to 0.5):
            How sure a detector must be of a box that it answers with; mAP counts all boxes.
        messages_column (`str`, *optional*):
            Column of conversations: lists of `{"role": ..., "content": ...}`.
        negative_column (`str`, *optional*):
            Column of a text that does not belong to the first one, for `sentence-similarity`.
        class_names (`list[str]`, *optional*):
            Names of the classes in the order of their numbers.
        problem_type (`str`, *optional*):
            `"single_label_classification"`, `"multi_label_classification"` or `"regression"`; told from the labels
            where it is not given.
        max_length (`int`, *optional*):
            Texts are truncated to that many tokens (read in windows, or packed into blocks, of that many), without it
            to what the model can read, at most 512.
        max_target_length (`int`, *optional*, defaults to 128):
            Tokens of a summary or translation at most, in training and when generating.
        prompt (`str`, *optional*):
            What a summariser or translator is asked; `{text}` stands for the text.
        source_language (`str`, *optional*):
            Language to translate from, as the tokenizer codes it, or that is spoken.
        target_language (`str`, *optional*):
            Language to translate to, as the tokenizer codes it.
        stride (`int`, *optional*):
            Tokens that neighbouring windows of a long context share; a third of a window without it.
        packing (`bool`, *optional*):
            Fill blocks of `max_length` tokens with text after text; on for raw text without it, never for
            conversations.
        mlm_probability (`float`, *optional*, defaults to 0.15):
            Share of the tokens that `fill-mask` hides.
        loss (`str`, *optional*):
            Loss of `sentence-similarity`, named as in sentence-transformers; chosen by the columns without it.
        freeze_tower (`str`, *optional*):
            Tower that stays as it is: `"image"`, `"text"`, or `"both"`, which leaves the projections.
        caption_template (`str`, *optional*):
            What makes a caption of a class name, `"a photo of a {label}."` without it.
        baselines (`bool`, *optional*, defaults to `False`):
            Also measure what needs a pass of the pretrained model: a linear probe solved on its frozen features, or
            the model as it is.
        early_stopping_patience (`int`, *optional*):
            Stop after that many evaluations without improvement.
        demo_examples (`int`, *optional*, defaults to 4):
            Rows of the evaluation data that are kept in the record, to try the model on; they are published with it.
        license (`str`, *optional*):
            Licence of the model, as the Hub names it (`apache-2.0`).
        language (`list[str]`, *optional*):
            ISO codes of the data's languages (`en`).
        dataset_license (`str`, *optional*):
            Licence of the data.
        push (`str`, *optional*):
            `USER/NAME` to push the finished run to. With `hub_strategy="checkpoint"` every checkpoint goes to the
            private repository `USER/NAME-checkpoints` on the way.
        resume_from_hub (`str`, *optional*):
            `USER/NAME` of a run whose checkpoints were pushed: it continues here.

    Raises:
        ConfigError: With every fault at once.

    Example:
    ```python
    >>> TransferConfig(model="sentence-transformers/all-MiniLM-L6-v2", dataset="reviews.csv", strategy="lp-ft")
    ```
    """

    model: str = field(metadata={"help": "Pretrained model: a Hub id or a local folder."})
    dataset: str = field(
        metadata={"help": "Hub id, CSV/TSV/JSON/Parquet file, folder of such files, or saved dataset folder."}
    )
    task: str = field(default="text-classification", metadata={"help": f"One of: {', '.join(TASK_NAMES)}."})
    strategy: str | None = field(
        default=None,
        metadata={"help": f"Which layers learn when: {', '.join(STRATEGY_NAMES)}, or a JSON object with its fields."},
    )
    adapter: str | None = field(
        default=None,
        metadata={"help": f"Adapter in the frozen model: {', '.join(ADAPTER_NAMES)}, or JSON with its fields."},
    )
    adapter_output: str = field(default="adapter", metadata={"help": f"One of: {', '.join(ADAPTER_OUTPUTS)}."})
    base_precision: str | None = field(
        default=None, metadata={"help": f"Precision of the frozen weights: {', '.join(BASE_PRECISIONS)}."}
    )
    learning_rates: str | None = field(
        default=None,
        metadata={"help": f"Rates per layer group: {', '.join(LEARNING_RATE_NAMES)}, or a JSON object."},
    )
    keep_dropout: bool = field(default=False, metadata={"help": "Let frozen layers drop out as in training."})
    prefix_cache: str = field(
        default="off",
        metadata={"help": "Store what frozen layers make of each row, for later epochs: auto, off, or a folder."},
    )
    sort_micro_batches: bool = field(
        default=False, metadata={"help": "Sort the rows of each optimizer step by length, to pad less."}
    )
    base_model_id: str | None = field(default=None, metadata={"help": "Hub id of a local base model, for the card."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration (subset) of the dataset."})
    train_split: str = field(default="train", metadata={"help": "Split to learn from."})
    validation_split: str = field(default="validation", metadata={"help": "Split to validate on."})
    test_split: str = field(default="test", metadata={"help": "Split that is touched once, at the end."})
    validation_fraction: float = field(default=0.1, metadata={"help": "Held out of train without a validation split."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Learn from that many rows only."})
    skip_unreadable: bool = field(default=False, metadata={"help": "Go on without files that cannot be opened."})
    mask_values: str | None = field(
        default=None, metadata={"help": f"What a mask's pixels hold: {', '.join(MASK_VALUES)}; looked up without it."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the text."})
    text_pair_column: str | None = field(default=None, metadata={"help": "Column of the second text, for pairs."})
    feature_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of a table that are written into one text, or all."}
    )
    label_column: str | None = field(default=None, metadata={"help": "Column of the label."})
    target_column: str | None = field(default=None, metadata={"help": "Column of the text to be written."})
    question_column: str | None = field(default=None, metadata={"help": "Column of the question."})
    context_column: str | None = field(default=None, metadata={"help": "Column of the text that holds the answer."})
    answers_column: str | None = field(default=None, metadata={"help": "Column of the answers, as in SQuAD."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the image."})
    audio_column: str | None = field(default=None, metadata={"help": "Column of the sound."})
    max_seconds: float = field(default=30.0, metadata={"help": "Of longer sounds only the beginning is read."})
    objects_column: str | None = field(default=None, metadata={"help": "Column of the objects in a picture."})
    box_format: str = field(default="xywh", metadata={"help": f"How boxes are written: {', '.join(BOX_FORMATS)}."})
    score_threshold: float = field(default=0.5, metadata={"help": "How sure a detector must be to answer a box."})
    messages_column: str | None = field(default=None, metadata={"help": "Column of conversations."})
    negative_column: str | None = field(default=None, metadata={"help": "Column of a text that does not belong."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Class names in the order of their numbers."}
    )
    problem_type: str | None = field(default=None, metadata={"help": f"One of: {', '.join(PROBLEM_TYPES)}."})
    max_length: int | None = field(default=None, metadata={"help": "Truncate texts to that many tokens."})
    max_target_length: int = field(default=128, metadata={"help": "Tokens of a summary or translation at most."})
    prompt: str | None = field(default=None, metadata={"help": "What to ask for; {text} stands for the text."})
    source_language: str | None = field(default=None, metadata={"help": "Language translated from, or spoken."})
    target_language: str | None = field(default=None, metadata={"help": "Language code to translate to."})
    stride: int | None = field(default=None, metadata={"help": "Tokens that windows of a long context share."})
    packing: bool | None = field(default=None, metadata={"help": "Fill blocks of max_length with text after text."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of tokens that fill-mask hides."})
    loss: str | None = field(default=None, metadata={"help": "Loss of sentence-similarity; by the columns without."})
    freeze_tower: str | None = field(default=None, metadata={"help": f"Of two towers: {', '.join(TOWER_CHOICES)}."})
    caption_template: str | None = field(default=None, metadata={"help": "Caption of a class, around {label}."})
    baselines: bool = field(default=False, metadata={"help": "Also measure a linear probe or the untrained model."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after that many evaluations without improvement."}
    )
    demo_examples: int = field(default=4, metadata={"help": "Rows kept to try the model on; published with it."})
    license: str | None = field(default=None, metadata={"help": "Licence of the model, as the Hub names it."})
    language: list[str] | None = field(default=None, metadata={"help": "ISO codes of the data's languages."})
    dataset_license: str | None = field(default=None, metadata={"help": "Licence of the data."})
    push: str | None = field(default=None, metadata={"help": "Push the finished run to this USER/NAME on the Hub."})
    resume_from_hub: str | None = field(
        default=None, metadata={"help": "Continue the run whose checkpoints were pushed for this USER/NAME."}
    )

    def __post_init__(self) -> None:
        if self.prefix_cache is False:
            # What YAML makes of `off`.
            object.__setattr__(self, "prefix_cache", "off")
        problems = list(problems_of(self))
        if problems:
            raise ConfigError(problems)

    def names_adapter(self) -> bool:
        """
        Returns:
            `bool`: Whether `strategy` names an adapter.
        """
        known = (*STRATEGY_NAMES, *ADAPTER_NAMES)
        return self.strategy is not None and parse_spec(self.strategy, known, "strategy")["name"] in ADAPTER_NAMES

    @property
    def adapter_spec(self) -> dict[str, Any] | None:
        """
        Returns:
            `dict` or `None`: The adapter as JSON values, from `adapter` or `strategy`.
        """
        value = self.strategy if self.names_adapter() else self.adapter
        return None if value is None else parse_adapter(value, ADAPTER_NAMES)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TransferConfig":
        """
        Builds a configuration from a mapping, e.g. of a YAML file.

        Args:
            values (`Mapping[str, Any]`):
                Field names and values.

        Returns:
            `TransferConfig`: The configuration.

        Raises:
            ConfigError: If a key is unknown, a required one is missing, or a value is wrong.
        """
        known = {f.name for f in fields(cls)}
        problems = [
            f"Unknown key {key!r}; the keys are {', '.join(sorted(known))}." for key in values if key not in known
        ]
        problems += [f"`{key}` is required but missing." for key in ("model", "dataset") if key not in values]
        if problems:
            raise ConfigError(problems)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: The fields as JSON values.
        """
        given = asdict(self)
        if self.adapter is not None and not isinstance(self.adapter, str):
            given["adapter"] = self.adapter_spec
        return given
