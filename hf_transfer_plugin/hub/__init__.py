"""The side wing: renders what a record says, and shares it; knows nothing of training."""

from hf_transfer_plugin.hub.card import render_card
from hf_transfer_plugin.hub.checkpoints import checkpoint_repo, pull_checkpoints, push_checkpoint
from hf_transfer_plugin.hub.client import HubError, check_rights, checked_repo
from hf_transfer_plugin.hub.demo import SPACE_TASKS, model_name, render_space, run_demo
from hf_transfer_plugin.hub.diagnostics import render_confusion, render_plots, render_reliability
from hf_transfer_plugin.hub.plots import render_schedule
from hf_transfer_plugin.hub.publish import Pushed, check_space, push_model, push_space

__all__ = [
    "SPACE_TASKS",
    "HubError",
    "Pushed",
    "check_rights",
    "check_space",
    "checked_repo",
    "checkpoint_repo",
    "model_name",
    "pull_checkpoints",
    "push_checkpoint",
    "push_model",
    "push_space",
    "render_card",
    "render_confusion",
    "render_plots",
    "render_reliability",
    "render_schedule",
    "render_space",
    "run_demo",
]
