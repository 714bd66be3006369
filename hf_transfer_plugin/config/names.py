"""The names that a configuration may hold."""

STRATEGY_NAMES = (
    "full",
    "feature-extraction",
    "freeze-first",
    "freeze-pattern",
    "bitfit",
    "norm-only",
    "gradual-unfreezing",
    "chain-thaw",
    "lp-ft",
    "plateau",
    "layer-sampling",
)
ADAPTER_NAMES = (
    "lora",
    "dora",
    "rslora",
    "pissa",
    "olora",
    "lora+",
    "adalora",
    "ia3",
    "vera",
    "oft",
    "boft",
    "ln-tuning",
    "trainable-tokens",
    "prefix",
    "prompt",
    "p-tuning",
)
ADAPTER_OUTPUTS = ("adapter", "merged", "both")
BASE_PRECISIONS = ("bfloat16", "float16", "8bit", "4bit", "int8")
BOX_FORMATS = ("xywh", "xyxy", "yolo")
MASK_VALUES = ("numbers", "numbers-from-1", "0-and-255")
TOWER_CHOICES = ("image", "text", "both")
LEARNING_RATE_NAMES = ("layerwise-decay", "slanted-triangular")
TASK_NAMES = (
    "text-classification",
    "token-classification",
    "question-answering",
    "summarization",
    "translation",
    "text-generation",
    "fill-mask",
    "sentence-similarity",
    "image-classification",
    "image-segmentation",
    "object-detection",
    "audio-classification",
    "automatic-speech-recognition",
    "zero-shot-image-classification",
)
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
FEATURE_KINDS = ("number", "boolean", "date", "category", "text")
