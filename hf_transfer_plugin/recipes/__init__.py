"""The whole path: from a configuration to a trained model, its record and its card."""

from hf_transfer_plugin.recipes.defaults import (
    DEFAULT_ARGUMENTS,
    DEFAULT_STRATEGY,
    build_strategy,
    default_arguments,
)
from hf_transfer_plugin.recipes.evaluation import evaluate_run, predict_run
from hf_transfer_plugin.recipes.finetuning import finetune
from hf_transfer_plugin.recipes.pretrained import sketch_model
from hf_transfer_plugin.recipes.quickstart import FULL_ROWS, run_quickstart

__all__ = [
    "DEFAULT_ARGUMENTS",
    "DEFAULT_STRATEGY",
    "FULL_ROWS",
    "build_strategy",
    "default_arguments",
    "evaluate_run",
    "finetune",
    "predict_run",
    "run_quickstart",
    "sketch_model",
]
