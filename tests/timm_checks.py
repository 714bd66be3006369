"""
What timm's own models say of their layers, in a process of its own: `python -m tests.timm_checks FOLDER OUTPUT`.

FOLDER holds timm and torchvision (`pip install --target FOLDER --no-deps timm torchvision`), which need not stand in
the environment: a torchvision of another build than torch would keep Transformers from being imported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

MODELS = {  # with few classes and small images, to be quick
    "resnet10t": {},
    "vgg11_bn": {},
    "inception_v3": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 3},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "efficientnet_b0": {},
    "swin_tiny_patch4_window7_224": {},
}


def declare_operators() -> None:
    """Of a torchvision whose library does not load beside this torch; nothing here calls them."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_kept"] = library


def import_timm(folder: str) -> Any:
    """timm, from a folder that comes first."""
    sys.path.insert(0, folder)
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        declare_operators()
    import timm

    return timm


def groups_of(timm: Any) -> dict[str, Any]:
    """Groups of each model, as they are found and as timm numbers its parameters for layer-wise rates."""
    from hf_transfer_plugin.layers import discover_layer_groups

    found = {}
    for name, settings in MODELS.items():
        model = timm.create_model(name, pretrained=False, num_classes=5, **settings)
        groups = discover_layer_groups(model)
        theirs = timm.models.group_parameters(model, model.group_matcher(coarse=False))
        found[name] = {
            "names": groups.names,
            "groups": [sorted(group.parameters) for group in groups],
            "theirs": [sorted(theirs[number]) for number in sorted(theirs)],
            "verified": groups.verified,
            "rule": groups.rule,
            "classifier": sorted(groups[-1].parameters),
        }
    return found


def run_of(folder: Path) -> dict[str, Any]:
    """A wrapped ResNet of timm through the whole path, with a linear probe."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TrainingArguments

    from hf_transfer_plugin import TransferConfig, discover_layer_groups, finetune
    from hf_transfer_plugin.recipes import evaluate_run
    from tests.tiny_pictures import write_folder

    config = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    settings = TimmWrapperConfig(architecture="resnet10t", pretrained_cfg={**config, "crop_pct": 1.0}, num_labels=7)
    model = TimmWrapperForImageClassification(settings)
    model.save_pretrained(folder / "model")
    data = str(write_folder(folder / "data", train=16, test=8))
    record = finetune(
        TransferConfig(
            model=str(folder / "model"),
            dataset=data,
            task="image-classification",
            baselines=True,
            strategy="feature-extraction",
        ),
        TrainingArguments(
            str(folder / "run"),
            num_train_epochs=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        ),
    )
    return {
        "names": discover_layer_groups(model).names,
        "head": discover_layer_groups(model)[-1].parameters,
        "accuracy": record.metrics["accuracy"],
        "again": evaluate_run(folder / "run", data)["metrics"]["accuracy"],
        "probe": record.baselines["linear_probe"]["accuracy"],
        "learned": record.phases[0]["groups"],
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    timm = import_timm(sys.argv[1])
    output = Path(sys.argv[2])
    found = {"groups": groups_of(timm), "run": run_of(output)}
    (output / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
