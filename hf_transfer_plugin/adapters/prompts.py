"""Adapters of prompts: who can have them."""
from typing import Any
def check_prompts(model: Any, config: Any) -> None:
    pass
