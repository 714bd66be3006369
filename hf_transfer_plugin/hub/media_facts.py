"""What a card says of the sounds and images of its data: what was there, what was left out, what was not read."""

from collections.abc import Mapping

from hf_transfer_plugin.record import TransferRecord


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
    told = {
        "skipped": "could not be opened and were left out",
        "too_long": "were longer and were left out",
        "cropped": "were longer, and only their beginning was read",
        "silent": "hold nothing but silence",
    }
    for name, words in told.items():
        splits: Mapping[str, int] = data.get(name) or {}
        if splits:
            counts = ", ".join(f"{count:,} of {split}" for split, count in splits.items())
            found.append(f"Files that {words}: {counts}.")
    return found
