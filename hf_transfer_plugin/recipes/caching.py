"""What a run keeps of the frozen layers' work, and what its record says of it."""

import re
from pathlib import Path
from typing import Any

from hf_transfer_plugin.config import TransferConfig
from hf_transfer_plugin.prefix_cache import FeatureStore, FrozenPrefixCache


def make_cache(config: TransferConfig) -> FrozenPrefixCache | None:
    """
    Args:
        config (`TransferConfig`):
            The configuration.

    Returns:
        `FrozenPrefixCache` or `None`: What `prefix_cache` asks for.
    """
    return None if config.prefix_cache == "off" else FrozenPrefixCache(_directory(config))


def make_feature_store(config: TransferConfig) -> FeatureStore | None:
    """
    Args:
        config (`TransferConfig`):
            The configuration.

    Returns:
        `FeatureStore` or `None`: Where the linear probe finds its features, in the same folder.
    """
    return None if config.prefix_cache == "off" else FeatureStore(_directory(config))


def _directory(config: TransferConfig) -> Path | None:
    return None if config.prefix_cache == "auto" else Path(config.prefix_cache).expanduser()


def cache_facts(cache: FrozenPrefixCache | None) -> dict[str, Any] | None:
    """
    Args:
        cache (`FrozenPrefixCache`, *optional*):
            The cache of a run that has ended.

    Returns:
        `dict[str, Any]` or `None`: Its report without folders of this machine, which must not reach a card.
    """
    if cache is None:
        return None
    report = cache.report
    cuts = [{name: value for name, value in cut.items() if name != "folder"} for cut in report["cuts"]]
    return {**report, "cuts": cuts, "reason": report["reason"] and _without_folder(report["reason"], cache.directory)}


def _without_folder(reason: str, directory: Path) -> str:
    names = "|".join(re.escape(str(path)) for path in (directory.expanduser().resolve(), directory))
    return re.sub(rf"'?(?:{names})[^'\s]*'?", "its folder", reason)
