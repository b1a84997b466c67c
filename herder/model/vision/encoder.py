"""The image encoder that a configuration asks for, its projector, and its activations by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from herder.core.config import Llama4Vision, MllamaVision
from herder.model.vision.llama4 import Llama4Tower
from herder.model.vision.mllama import MllamaTower

if TYPE_CHECKING:
    from herder.model.llama import Llama


class Projector(nn.Module):
    """Llama 4's: to the text's width, without bias."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_1(x)
        return out


def make_tower(vision: MllamaVision | Llama4Vision) -> nn.Module:
    """Called with pixels (tiles, 3, tile, tile) and grid, it gives the image's states (m, width)."""
    return MllamaTower(vision) if isinstance(vision, MllamaVision) else Llama4Tower(vision)


def make_projector(vision: MllamaVision | Llama4Vision, dim: int) -> nn.Module:
    """Called with states (m, width), it gives them in the text's width, (m, dim)."""
    if isinstance(vision, MllamaVision):
        return nn.Linear(vision.dim * (1 + len(vision.taps)), dim)
    return Projector(vision.output_dim, dim)


@contextmanager
def tapped(model: Llama, report: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Reports the activations of the encoder, float32, with forward hooks; in this order:

    vision.layernorm_pre, vision.layers.N.out, vision.layernorm_post, vision.global.N.out (Llama 3.2), vision.out (what
    the tower gives), projector.out
    """

    def after(name: str) -> Any:
        return lambda module, arguments, output: report(name, output.detach().float())

    tower: Any = model.vision_model
    named: dict[str, Any] = {
        "vision.layernorm_pre": tower.layernorm_pre,
        "vision.layernorm_post": tower.layernorm_post,
        "vision.out": tower,
        "projector.out": model.multi_modal_projector,
    }
    layers = tower.model.layers if isinstance(tower, Llama4Tower) else tower.transformer.layers
    named |= {f"vision.layers.{number}.out": layer for number, layer in enumerate(layers)}
    if isinstance(tower, MllamaTower):
        named |= {f"vision.global.{number}.out": layer for number, layer in enumerate(tower.global_transformer.layers)}
    hooks = [module.register_forward_hook(after(name)) for name, module in named.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
