"""What the images of a batch are to the decoder: rows in place of embeddings, or states that cross-attention reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Sight:
    """The images that some consecutive tokens of one sequence see through cross-attention (Llama 3.2 Vision).

    tokens: their range among the batch's tokens, flattened. states: (m, dim), what the projector gives for all images
    of the sequence, one after another. visible: bool (tokens, m); a row may be all False: it sees no image, and the
    cross-attention layers leave it as it is. kv: layer -> keys and values of `states`, filled by each cross-attention
    layer the first time and reused for as long as whoever made the states keeps this dict with them.
    """

    tokens: slice
    states: Tensor
    visible: Tensor
    kv: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Images:
    """The images of one forward pass. Token numbers count the batch's tokens, flattened.

    rows: (m, dim) embeddings, and at: (m,) int64, the tokens whose embeddings they replace (Llama 4).
    sights: for cross-attention layers; a token in none of them sees no image. Without any, these layers are skipped.
    """

    rows: Tensor | None = None
    at: Tensor | None = None
    sights: tuple[Sight, ...] = ()

    def replace(self, x: Tensor) -> Tensor:
        """Embeddings x (..., dim) with the images' rows in their places."""
        if self.rows is None or self.at is None:
            return x
        return x.flatten(0, -2).index_copy(0, self.at, self.rows.to(x.dtype)).view_as(x)
