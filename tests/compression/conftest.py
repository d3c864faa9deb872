from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer.testing.attention import tiny_llama


@pytest.fixture
def llama() -> Any:
    return tiny_llama()


@pytest.fixture
def linear_inputs() -> Callable[[Any, list[Tensor]], dict[str, Tensor]]:
    """What every linear layer reads while the whole model runs, [sequences, T, in]."""

    def read(model: Any, sequences: list[Tensor]) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = {}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, name=name: seen.setdefault(name, []).append(args[0].detach())
            )
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear)
        ]
        with torch.no_grad():
            for ids in sequences:
                model(ids)
        for hook in hooks:
            hook.remove()
        return {name: torch.cat(found) for name, found in seen.items()}

    return read
