"""The one door to optional packages; knows nothing of the rest."""

from importlib import import_module
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
