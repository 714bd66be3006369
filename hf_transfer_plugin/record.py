"""What was done and measured, as JSON: the only bridge from training to the Hub wing."""

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RECORD_NAME = "transfer_record.json"
RECORD_VERSION = 1


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """
    Writes a file so that readers see the old content or the new one, never a half.

    Args:
        path (`str` or `Path`):
            The file; its folder is created where it is missing.
        content (`str` or `bytes`):
            What it shall hold; text as UTF-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@dataclass
class TransferRecord:
    """
    The facts of one run. Cards, plots and Spaces are rendered from it alone, also years later.

    Args:
        task (`str`):
            The Hub's pipeline tag.
        base_model (`str`):
            Hub id of the base model, or the name of its folder where no id is known.
        base_model_id (`str` or `None`):
            The Hub id alone; `None` where it is not known.
        model_class (`str`):
            Class of the trained model.
        problem_type (`str`):
            As in the model's config.
        class_names (`list[str]`):
            Names of the classes in the order of their numbers; empty for regression.
        options (`dict`):
            Options of the task that using the model needs: `prompt`, `stride`, `packing` ...
        dataset (`dict`):
            `name`, `fingerprint`, `splits` (rows for each), `columns` (role -> column), `truncated` (rows cut off),
            `license` where it is known.
        strategy (`dict`):
            `{"name": ..., **fields}`.
        learning_rates (`dict` or `None`):
            `{"name": ..., **fields}`.
        adapter (`dict` or `None`):
            What was trained in place of the base's own weights: `name`, `peft_type`, `r`, `lora_alpha`,
            `target_modules`, `layers`, `also_train`, `modules_to_save`, `trainable_parameters`, `base_precision`, as
            far as the method has them; `None` where the weights are the model's own.
        groups (`list[dict]`):
            Layer groups, input first: `name`, `parameters` (count), `rule` that found them.
        phases (`list[dict]`):
            `step` from which the set of learning groups holds, `groups` (their names), `trainable_parameters`.
        rates (`list[dict]`):
            `step` and, for each learning group, its learning rate at that step.
        arguments (`dict`):
            Training arguments that matter for the result.
        metrics (`dict[str, float]`):
            Headline metrics without prefix, from `metrics_split`.
        metrics_split (`str`):
            `"test"` where the data has one, else `"validation"`.
        per_class (`dict[str, dict]`):
            Precision, recall, F1 and support of each class.
        confusion_matrix (`list[list[int]]`):
            Rows are the true classes, columns the predicted ones.
        intervals (`dict[str, list[float]]`):
            Bootstrap interval of the headline metric: name -> `[low, high]`, at 95%; of a table also of
            `METRIC_minus_gradient_boosting`, how far it lies above that baseline's on the same rows.
        calibration (`dict`):
            `ece`, the expected calibration error, and `bins`, each with `low`, `high`, `count`, `confidence` and
            `accuracy`.
        errors (`list[dict]`):
            The most confident wrong answers: role of the column -> value, `label`, `prediction`, `score`.
        samples (`list[dict]`):
            Generated answers: role of the column -> value, `label` (what was wanted), `prediction`.
        per_subset (`dict[str, dict]`):
            Metrics of each subset of the rows.
        examples (`list[dict]`):
            Rows of `metrics_split` to try the model on: role of the column -> value.
        license (`str` or `None`):
            Licence of the model, as the Hub names it.
        language (`list[str]`):
            ISO codes of the languages of the data.
        baselines (`dict[str, dict]`):
            Metrics and seconds of what fine-tuning must beat: `majority`, `linear_probe`, `gradient_boosting`.
        prefix_cache (`dict` or `None`):
            What came of storing the frozen layers' work: `used`, else the `reason`; `storage`; `cuts`, each with `fed`
            (the first module that runs) and `skipped_share` (of a forward pass); `hits` and `misses` in batches;
            `rows_filled`, `fill_seconds`, `bytes`. `None` where it was not asked for.
        seconds (`dict[str, float]`):
            Wall-clock seconds of `train` and `evaluate`; `train_cpu` is processor time of the main process.
        energy (`dict[str, float]`):
            `kwh` and `kg_co2` of training, where codecarbon measured them.
        hardware (`dict`):
            Device and cores.
        versions (`dict[str, str]`):
            Versions of the libraries.
        created (`str`):
            ISO date.
    """

    task: str
    base_model: str
    base_model_id: str | None = None
    model_class: str = ""
    problem_type: str = ""
    class_names: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    learning_rates: dict[str, Any] | None = None
    adapter: dict[str, Any] | None = None
    groups: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    rates: list[dict[str, Any]] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_split: str = ""
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    confusion_matrix: list[list[int]] = field(default_factory=list)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    per_subset: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    license: str | None = None
    language: list[str] = field(default_factory=list)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    prefix_cache: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    record_version: int = RECORD_VERSION
    path: Path | None = field(default=None, compare=False)

    def save(self, folder: str | Path) -> Path:
        """
        Writes `transfer_record.json` atomically.

        Args:
            folder (`str` or `Path`):
                The run folder.

        Returns:
            `Path`: The file, also kept in `self.path`.
        """
        values = {key: value for key, value in asdict(self).items() if key != "path"}
        self.path = Path(folder) / RECORD_NAME
        write_atomically(self.path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return self.path

    @classmethod
    def load(cls, path: str | Path) -> "TransferRecord":
        """
        Reads a record.

        Args:
            path (`str` or `Path`):
                The file, or the run folder that holds it.

        Returns:
            `TransferRecord`: The record.

        Raises:
            ValueError: If there is no record, it is no JSON, or a newer version of this package wrote it.
        """
        path = Path(path)
        file = path / RECORD_NAME if path.is_dir() else path
        if not file.is_file():
            raise ValueError(
                f"Expected a run folder with a {RECORD_NAME}, but {str(path)!r} has none. "
                "Make one with `hf-transfer-plugin train` or `hf-transfer-plugin quickstart`."
            )
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(file)!r} must be a record, but is no JSON: {error}.") from error
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown or values.get("record_version", 0) > RECORD_VERSION:
            raise ValueError(
                f"{str(file)!r} was written by a newer version of hf-transfer-plugin (unknown: {sorted(unknown)}). "
                "Upgrade with `pip install -U hf-transfer-plugin`."
            )
        return cls(**values, path=file)
