"""The one door to optional packages; knows nothing of the rest."""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType


def require(package: str, *, extra: str) -> ModuleType:
    """
    Imports an optional package, or says how to install it.

    Args:
        package (`str`):
            Import name of the package, e.g. `"matplotlib"` or `"matplotlib.pyplot"`.
        extra (`str`):
            Name of the extra of this project that installs it.

    Returns:
        `ModuleType`: The imported module.

    Raises:
        ImportError: If the package is not installed.
    """
    if find_spec(package.split(".")[0]) is None:
        raise ImportError(
            f'`{package}` is needed here but is not installed. Run `pip install "hf-transfer-plugin[{extra}]"`.'
        )
    return import_module(package)


def torchvision_fault() -> str:
    """
    Transformers does without torchvision, but cannot be imported beside one that is made for another torch.

    Returns:
        `str`: What is wrong and what to do; `""` where torchvision loads or is not installed.
    """
    if find_spec("torchvision") is None:
        return ""
    try:
        import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return (
            f"torchvision is installed, but does not load beside torch {version('torch')}: {reason}. Install the one "
            "that is made for this torch, from the same index (for CPUs `pip install torchvision --index-url "
            "https://download.pytorch.org/whl/cpu`), or remove it: images are then prepared by Pillow. Models of timm "
            "need it."
        )
    return ""
