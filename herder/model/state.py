"""What a forward pass is given besides tokens: the cache of what was said before, and what its layers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from herder.core.config import LayerPlan
from herder.model.attention import visible
from herder.model.images import Images


class Cache(Protocol):
    """Keys and values of earlier tokens. It knows which sequence each token of the batch belongs to."""

    def attend(self, layer: int, plan: LayerPlan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keeps k and v (tokens, kv_heads, head_dim) of the batch's tokens, and gives the attention of q (tokens,
        heads, head_dim) over the keys of its sequence that the plan lets it see, in q's shape."""
        ...


@dataclass(slots=True)
class Pass:
    """What all layers of one forward pass share. rotation: (cos, sin), see Rope. temperature: (..., 1, 1) or None.
    causal: positions are 0, 1, 2, ..."""

    positions: Tensor
    causal: bool
    rotation: tuple[Tensor, Tensor]
    temperature: Tensor | None
    cache: Cache | None
    images: Images | None
    masks: dict[tuple[int | None, int | None], Tensor] = field(default_factory=dict)

    def mask(self, plan: LayerPlan) -> Tensor | None:
        """visible() among the pass's own tokens, made once for layers of equal reach; None where it is just causal."""
        if self.causal and not plan.local:
            return None
        reach = plan.window, plan.chunk
        if reach not in self.masks:
            self.masks[reach] = visible(plan, self.positions, self.positions)
        return self.masks[reach]
