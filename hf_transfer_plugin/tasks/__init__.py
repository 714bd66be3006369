"""What a task is, as data: how its rows are read, encoded, batched and measured."""

from hf_transfer_plugin.tasks.audio_classification import AUDIO_CLASSIFICATION
from hf_transfer_plugin.tasks.base import Outcome, Task, TaskData
from hf_transfer_plugin.tasks.classification import TEXT_CLASSIFICATION
from hf_transfer_plugin.tasks.fill_mask import FILL_MASK
from hf_transfer_plugin.tasks.image_classification import IMAGE_CLASSIFICATION
from hf_transfer_plugin.tasks.image_segmentation import IMAGE_SEGMENTATION
from hf_transfer_plugin.tasks.loading import load_splits
from hf_transfer_plugin.tasks.object_detection import OBJECT_DETECTION
from hf_transfer_plugin.tasks.question_answering import QUESTION_ANSWERING
from hf_transfer_plugin.tasks.sentence_similarity import SENTENCE_SIMILARITY
from hf_transfer_plugin.tasks.speech import SPEECH_RECOGNITION
from hf_transfer_plugin.tasks.text_generation import TEXT_GENERATION
from hf_transfer_plugin.tasks.token_classification import TOKEN_CLASSIFICATION
from hf_transfer_plugin.tasks.two_towers import TWO_TOWERS
from hf_transfer_plugin.tasks.writing import SUMMARIZATION, TRANSLATION

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        TEXT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        QUESTION_ANSWERING,
        SUMMARIZATION,
        TRANSLATION,
        TEXT_GENERATION,
        FILL_MASK,
        AUDIO_CLASSIFICATION,
        SPEECH_RECOGNITION,
        SENTENCE_SIMILARITY,
        IMAGE_CLASSIFICATION,
        IMAGE_SEGMENTATION,
        OBJECT_DETECTION,
        TWO_TOWERS,
    )
}

__all__ = ["TASKS", "Outcome", "Task", "TaskData", "load_splits"]
