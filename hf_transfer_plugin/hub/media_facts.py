"""What a card says of the sounds and images of its data: what was there, what was left out, what was not read."""

from collections.abc import Mapping

from hf_transfer_plugin.record import TransferRecord

MEDIA_LIMITS = {
    "audio-classification": (
        "It hears voices, rooms and microphones as well as what is said or sounds, and may answer by these on "
        "recordings made otherwise."
    ),
    "automatic-speech-recognition": (
        "It writes something for every sound, noise and silence too, and can write words that nobody said. Names, "
        "numbers and voices unlike those that it learned from it hears worst."
    ),
    "image-classification": (
        "It knows pictures like those that it learned from: another camera, light, angle or background can change its "
        "answer."
    ),
    "zero-shot-image-classification": (
        "It chooses among the names that it is given, and another wording of the same names can change its answer. "
        "What it was not trained on, here or before, it knows badly by any name."
    ),
    "object-detection": (
        "It knows pictures like those that it learned from, and misses first what is small, hidden or crowded. The "
        "threshold of the score weighs what it misses against what it invents."
    ),
    "image-segmentation": (
        "It knows pictures like those that it learned from. It reads every picture at one size, and draws badly "
        "what is small or thin in a large one."
    ),
}
# task -> what the figures of a class are of, where not of rows
COUNTED = {"image-segmentation": "pixels", "object-detection": "objects"}
# task -> heading of the errors, where the model tells no confidence
WORST = {"image-segmentation": "Worst pictures", "object-detection": "Pictures with the most errors"}
SAMPLED = {
    "image-segmentation": "the mask and the model's answer, drawn over the picture",
    "object-detection": "the picture with boxes that are right (green), invented (red) and missed (dashed, yellow)",
}
BOXES = {
    "clipped_boxes": "reached out of their picture by a pixel at most, and were cut",
    "crowds": "are around crowds, and were left out",
}
MASKS = {
    "numbers-from-1": "In the masks 0 is not labelled, and class by class the values begin with 1.",
    "0-and-255": "In the masks 0 is the first class and 255 the second.",
}


def sample_words(record: TransferRecord) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: What stands in the columns of its samples, and in which colours.
    """
    colours: Mapping[str, str] = record.dataset.get("colours") or {}
    told = ", ".join(f"{name} in {colour}" for name, colour in colours.items())
    found = SAMPLED.get(record.task, "what was wanted and what the model wrote")
    return f"{found}: {told}" if told else found


def figure_words(record: TransferRecord) -> str:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `str`: What the figures of its classes mean, where their names do not say it.
    """
    if record.task != "object-detection" or not record.per_class:
        return ""
    return (
        "AP is the average precision over overlaps (intersection over union) of 0.5 to 0.95. Precision, recall and F1 "
        f"are of boxes with a score above {record.options.get('score_threshold', 0.5):g}, which count as right where "
        "they overlap a box of their class by 0.5 or more."
    )


def media_words(record: TransferRecord) -> list[str]:
    """
    Args:
        record (`TransferRecord`):
            The record.

    Returns:
        `list[str]`: Sentences; none where the data is text.
    """
    data, found = record.dataset, []
    rates: Mapping[str, int] = data.get("sampling_rates", {})
    if rates:
        kinds = ", ".join(f"{count:,} at {kind}" for kind, count in sorted(rates.items(), key=lambda one: -one[1]))
        found.append(
            f"The sounds: {kinds}. Channels are averaged, and all are resampled to what the model reads; of each at "
            f"most {record.options.get('max_seconds', 30):g} seconds are read."
        )
    modes: Mapping[str, int] = data.get("image_modes", {})
    if modes:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(modes.items(), key=lambda one: -one[1]))
        found.append(f"The images, by their colours as Pillow names them: {kinds}. All are read as RGB.")
    if "read_size" in data:
        width, height = data["read_size"]
        found.append(
            f"Pictures and masks are read, and the figures measured, at {width} x {height} pixels, whatever their "
            "size."
        )
    found += [MASKS[values] for values in [record.options.get("mask_values")] if values in MASKS]
    bare: Mapping[str, int] = data.get("unlabelled") or {}
    if bare:
        counts = ", ".join(f"{count:,} of {split}" for split, count in bare.items())
        found.append(f"Rows whose masks label no pixel and were left out: {counts}.")
    told = {
        "skipped": "could not be opened and were left out",
        "too_long": "were longer and were left out",
        "cropped": "were longer, and only their beginning was read",
        "silent": "hold nothing but silence",
        "without_objects": "show none of the objects",
    }
    for kind, facts in (("Files", told), ("Boxes", BOXES)):
        for name, words in facts.items():
            splits: Mapping[str, int] = data.get(name) or {}
            if splits:
                counts = ", ".join(f"{count:,} of {split}" for split, count in splits.items())
                found.append(f"{kind} that {words}: {counts}.")
    return found
