"""One error that tells everything that is wrong at once."""

from collections.abc import Callable, Iterable


class ConfigError(ValueError):
    """
    Everything that is wrong with a configuration, told at once.

    Args:
        problems (`Iterable[str]`):
            One sentence for each fault: what was expected, what was got, what to do.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def gather(*checks: Callable[[], object]) -> None:
    """
    Runs all checks and tells everything that they find at once.

    Args:
        *checks (`Callable`):
            Functions that raise `ValueError`.

    Raises:
        ConfigError: If any of them does.
    """
    problems: list[str] = []
    for check in checks:
        try:
            check()
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
