"""
Is this package slower than what somebody writes by hand with PEFT and Trainer? The same LoRA both ways, on the same
rows with the same seed: the losses must be equal to the last bit, and so must the adapters that come of them.

    python -m benchmarks.plain_peft --data DATA                    # a quarter of an hour; results/plain_peft.jsonl
    python -m benchmarks.plain_peft --data DATA classification     # one of the three
    python -m benchmarks.plain_peft --data DATA --smoke            # two steps of each; nothing is kept
    python -m benchmarks.plain_peft --table

classification: MiniLM on Rotten Tomatoes. language-model: SmolLM2 on blocks of 512 tokens of WikiText-2.
checkpointing: the same with LoRA on the upper half of the blocks and activation checkpointing. There Transformers
makes the output of the embeddings need a gradient, so that the script differentiates and recomputes the lower half for
nothing, while `attach` takes that hook away.

Resumable: a run whose line is there is not made again. Every run is a process of its own with one thread and bfloat16
autocast; the ways take turns, the first one changes from round to round, and a round that is not counted goes before.
Given are medians of the rounds and, in brackets, the lowest and highest ratio of a round: above 1 the script takes
more. Seconds are medians of the steps after the first three. Memory is the highest resident of training; what was
there before cannot be told apart, as finding the layer groups reads weights that the script has not touched by then.
Needs what benchmarks/adapters.py needs.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.adapters import QUIET

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "plain_peft.jsonl"
WAYS = ("script", "attach")
CASES: dict[str, dict[str, Any]] = {
    "classification": {
        "setting": "minilm",
        "arguments": {"max_steps": 40, "per_device_train_batch_size": 16},
    },
    "language-model": {
        "setting": "smollm2",
        "arguments": {"max_steps": 9, "per_device_train_batch_size": 1},
    },
    "checkpointing": {
        "setting": "smollm2",
        "layers": 15,
        "arguments": {"max_steps": 9, "per_device_train_batch_size": 1, "activation_checkpointing": True},
    },
}
FIGURES = {
    "processor seconds a step": ("seconds", "cpu_a_step", "{:.3f} s"),
    "seconds a step by the clock": ("seconds", "wall_a_step", "{:.3f} s"),
    "peak memory": ("memory_mib", "peak", "{:,.0f} MiB"),
}


def by_hand(case: str, model: Any) -> Any:
    """
    What one writes with PEFT.

    Args:
        case (`str`):
            Name of the case.
        model (`PreTrainedModel`):
            The model.

    Returns:
        `PeftModel`: The model with LoRA.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    usual: dict[str, Any] = {"r": 16, "lora_alpha": 32}
    if case == "classification":
        return get_peft_model(
            model,
            LoraConfig(
                task_type=TaskType.SEQ_CLS,
                target_modules=[
                    "query",
                    "key",
                    "value",
                    "attention.output.dense",
                    "intermediate.dense",
                    "output.dense",
                ],
                modules_to_save=["pooler", "classifier"],
                **usual,
            ),
        )
    upper = list(range(15, 30)) if case == "checkpointing" else None
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            layers_to_transform=upper,
            layers_pattern=None if upper is None else "layers",
            **usual,
        ),
    )


def run(case: str, way: str, data: Path, **changes: Any) -> dict[str, Any]:
    """
    Args:
        case (`str`):
            Name of the case.
        way (`str`):
            `"script"` or `"attach"`.
        data (`Path`):
            Folder of smollm2.
        **changes:
            Other training arguments.

    Returns:
        `dict[str, Any]`: What the results keep of it.
    """
    from transformers import Trainer, set_seed

    from benchmarks.adapter_runs import Memory, Steps, arguments, load_model, surroundings, training_rows
    from benchmarks.adapter_settings import model_folder, tokenizer_of
    from hf_transfer_plugin import attach
    from hf_transfer_plugin.adapters import attach_adapter
    from hf_transfer_plugin.freezing import full

    plan = CASES[case]
    folder = model_folder(plan["setting"], data)
    train, _, collator = training_rows(plan["setting"], tokenizer_of(folder), 0, sweep=True)
    model = load_model(plan["setting"], folder, 0)
    layers = {"layers": plan["layers"]} if "layers" in plan else {}
    set_seed(0)
    model = by_hand(case, model) if way == "script" else attach_adapter(model, {"name": "lora", **layers})
    steps = Steps()
    with tempfile.TemporaryDirectory() as place:
        own = {"learning_rate": 1e-3, "logging_steps": 1, "seed": 0} | plan["arguments"] | changes
        trainer = Trainer(
            model=model, args=arguments(place, **own), train_dataset=train, data_collator=collator, callbacks=[steps]
        )
        if way == "attach":
            attach(trainer, schedule=full())
        memory = Memory()
        trainer.train()
        found = {"memory_mib": memory.taken(), "seconds": steps.medians(), "steps": len(steps.wall)}
    return {
        **found,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "adapter": fingerprint(model),
        **surroundings(),
    }


def fingerprint(model: Any) -> str:
    """
    Args:
        model (`PeftModel`):
            The model.

    Returns:
        `str`: A hash of all that its adapter saves, names and bits.
    """
    from peft import get_peft_model_state_dict

    digest = hashlib.sha256()
    for name, value in sorted(get_peft_model_state_dict(model).items()):
        digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def in_child(case: str, way: str, options: argparse.Namespace) -> dict[str, Any]:
    """
    Runs one way in a process of its own, so that its memory is its own.

    Args:
        case (`str`):
            Name of the case.
        way (`str`):
            `"script"` or `"attach"`.
        options (`Namespace`):
            `data` and `smoke`.

    Returns:
        `dict[str, Any]`: Its line.

    Raises:
        CalledProcessError: If the run failed.
    """
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
    quiet = QUIET | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "line.json"
        words = ["--child", way, "--write", str(file), "--data", str(options.data)]
        command = [sys.executable, "-m", "benchmarks.plain_peft", case, *words]
        command += ["--smoke"] if options.smoke else []
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | quiet | {"PYTHONPATH": path})
        return json.loads(file.read_text(encoding="utf-8"))


def read_results() -> dict[tuple[str, str, int], dict[str, Any]]:
    """
    Returns:
        `dict`: Case, way and round -> line of results/plain_peft.jsonl.
    """
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    return {(line["case"], line["way"], line["round"]): line for line in map(json.loads, lines)}


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """
    Args:
        first (`dict[str, Any]`):
            A line.
        second (`dict[str, Any]`):
            Another.

    Returns:
        `float`: The largest difference of their losses, 0 where every bit is the same.
    """
    return max(abs(one - other) for one, other in zip(first["losses"], second["losses"], strict=True))


def pairs_of(found: dict[tuple[str, str, int], dict[str, Any]], case: str) -> list[list[dict[str, Any]]]:
    """
    Args:
        found (`dict`):
            Lines.
        case (`str`):
            Name of the case.

    Returns:
        `list[list[dict]]`: The two ways of each round that has both.
    """
    rounds = sorted(number for name, way, number in found if name == case and way == WAYS[0])
    return [[found[case, way, n] for way in WAYS] for n in rounds if (case, WAYS[1], n) in found]


def table(found: dict[tuple[str, str, int], dict[str, Any]]) -> str:
    """
    Args:
        found (`dict`):
            Lines.

    Returns:
        `str`: Medians and ratios, as Markdown.
    """
    lines = ["| LoRA | figure | script | `attach` | script / `attach` |", "|---|---|---:|---:|---:|"]
    for case in CASES:
        pairs = pairs_of(found, case)
        if not pairs:
            continue
        for title, (group, name, form) in FIGURES.items():
            values = [[line[group][name] for line in pair] for pair in pairs]
            medians = [statistics.median(column) for column in zip(*values, strict=True)]
            ratios = [script / ours for script, ours in values]
            shown = " | ".join(form.format(value) for value in medians)
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            lines.append(f"| {case} | {title} | {shown} | {ratio} |")
        difference = max(largest_difference(*pair) for pair in pairs)
        same = "the same bits" if all(a["adapter"] == b["adapter"] for a, b in pairs) else "other bits"
        steps = len(pairs[0][0]["losses"])
        lines.append(f"| {case} | largest difference of {steps} losses; adapter | | | {difference:g}; {same} |")
    return "\n".join(lines)


def measure(case: str, options: argparse.Namespace) -> None:
    """
    Runs what is left of a case, the two ways in turn.

    Args:
        case (`str`):
            Name of the case.
        options (`Namespace`):
            The command line.

    Raises:
        RuntimeError: If the losses of the two ways differ.
    """
    found = {} if options.smoke else read_results()
    rounds = 1 if options.smoke else options.rounds
    turns = [(n, WAYS[(n + i) % 2]) for n in range(rounds) for i in range(2)]
    left = [(number, way) for number, way in turns if (case, way, number) not in found]
    if left and not options.smoke:
        in_child(case, WAYS[0], argparse.Namespace(data=options.data, smoke=True))  # reads the files
    for number, way in left:
        line = {"case": case, "way": way, "round": number, **in_child(case, way, options)}
        found[case, way, number] = line
        if not options.smoke:
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        print(f"{case}, round {number}, {way}: {line['seconds']}, {line['memory_mib']}, {line['losses']}", flush=True)
    for pair in pairs_of(found, case):
        if largest_difference(*pair) or pair[0]["adapter"] != pair[1]["adapter"]:
            raise RuntimeError(
                f"{case}: the losses of both ways must be equal, but differ by {largest_difference(*pair):g}, or the "
                "adapters that came of them differ."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"some of {', '.join(CASES)} (default: all)")
    parser.add_argument("--data", type=Path, default=Path("DATA"), help="folder with smollm2 (default: DATA)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--smoke", action="store_true", help="two steps of each; nothing is kept")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    unknown = sorted(set(options.cases) - set(CASES))
    if unknown:
        parser.error(f"the cases are {', '.join(CASES)}, but got {unknown[0]!r}")
    if options.child:
        changes = {"max_steps": 2} if options.smoke else {}
        line = run(options.cases[0], options.child, options.data, **changes)
        options.write.write_text(json.dumps(line), encoding="utf-8")
        return
    for case in [] if options.table else options.cases or CASES:
        measure(case, options)
    print(f"\n{table(read_results())}")


if __name__ == "__main__":
    main()
