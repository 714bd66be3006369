"""What a task is, as data: how its rows are read, encoded, batched and measured."""

from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.classification import TEXT_CLASSIFICATION
from hf_transfer_plugin.tasks.loading import load_splits

TASKS: dict[str, Task] = {task.name: task for task in (TEXT_CLASSIFICATION,)}

__all__ = ["TASKS", "Outcome", "Task", "TaskData", "load_splits"]
