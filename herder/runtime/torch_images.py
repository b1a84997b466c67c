"""Images on the torch runtime: each is encoded once, and what the chunks of a batch see of it is handed to the decoder.

Llama 4: the encoder's rows replace the embeddings at Image.positions, those of them that lie in the chunk. Llama 3.2
Vision: an image is seen from its token up to the next image's; images whose tokens follow each other directly are seen
together, as one group, each from its own token on (Meta's llama3/chat_format.py, create_vision_mask; the last group's
view does not end).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from herder.core.batch import Batch, Chunk
from herder.core.config import MllamaVision
from herder.core.request import Image
from herder.model.images import Images, Sight
from herder.model.llama import Llama

CACHE_BYTES = 2 << 30


@dataclass(slots=True)
class Seen:
    """An encoded image, or group of them. states: (m, dim). sizes: how many of them each image has. kv: see Sight."""

    states: Tensor
    sizes: tuple[int, ...]
    kv: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        tensors = [self.states, *(tensor for pair in self.kv.values() for tensor in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class EncoderCache:
    """The images that have been encoded, by key.

    capacity: bytes that those may take which the batch under way does not need; the least recently used go first. One
    that is needed again later is encoded again.
    """

    def __init__(self, model: Llama, capacity: int = CACHE_BYTES) -> None:
        weight = model.lm_head.weight
        self._model, self._device, self._dtype = model, weight.device, weight.dtype
        self._crosses = isinstance(model.config.vision, MllamaVision)
        self._seen: OrderedDict[tuple[bytes, ...], Seen] = OrderedDict()
        self._used: set[tuple[bytes, ...]] = set()  # by the batch under way
        self._capacity = capacity

    @property
    def bytes(self) -> int:
        return sum(seen.bytes for seen in self._seen.values())

    def images(self, batch: Batch) -> Images | None:
        """What the batch's chunks see, None if nothing. Encodes the images that are not known yet."""
        self._used.clear()
        found = self._sights(batch) if self._crosses else self._rows(batch)
        self._forget()
        return found

    def _rows(self, batch: Batch) -> Images | None:
        rows: list[Tensor] = []
        at: list[int] = []
        for offset, chunk in _with_offsets(batch):
            end = chunk.start + len(chunk.tokens)
            for image in chunk.images:
                first, last = bisect_left(image.positions, chunk.start), bisect_left(image.positions, end)
                if first < last:
                    states = self._encoded((image,)).states
                    assert len(states) == len(image.positions), "an image with more or fewer tokens than rows"
                    rows.append(states[first:last])
                    at += [offset + position - chunk.start for position in image.positions[first:last]]
        if not rows:
            return None
        return Images(rows=torch.cat(rows), at=torch.tensor(at, device=self._device))

    def _sights(self, batch: Batch) -> Images | None:
        sights = []
        for offset, chunk in _with_offsets(batch):
            for view in views(chunk):
                seen = self._encoded(view.images)
                tokens = slice(offset + view.start - chunk.start, offset + view.end - chunk.start)
                sights.append(Sight(tokens, seen.states, self._visible(view, seen.sizes), seen.kv))
        return Images(sights=tuple(sights)) if sights else None

    def _visible(self, view: View, sizes: tuple[int, ...]) -> Tensor:
        """Bool (tokens, m): each image of the group from its own position on."""
        begins = np.repeat([image.positions[0] for image in view.images], sizes)
        return torch.from_numpy(np.arange(view.start, view.end)[:, None] >= begins).to(self._device)

    def _encoded(self, images: Sequence[Image]) -> Seen:
        key = tuple(image.key for image in images)
        seen = self._seen.get(key)
        if seen is None:
            alone = len(images) == 1
            parts = [self._encode(images[0])] if alone else [self._encoded((image,)).states for image in images]
            states = parts[0] if alone else torch.cat(parts)
            seen = self._seen[key] = Seen(states, tuple(len(part) for part in parts))
        self._seen.move_to_end(key)
        self._used.add(key)
        return seen

    def _encode(self, image: Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.pixels, np.float32)).to(self._device, self._dtype)
        return self._model.see(pixels, image.grid)

    def _forget(self) -> None:
        spare = sum(seen.bytes for key, seen in self._seen.items() if key not in self._used)
        for key in [key for key in self._seen if key not in self._used]:
            if spare <= self._capacity:
                break
            spare -= self._seen.pop(key).bytes


def _with_offsets(batch: Batch) -> Iterator[tuple[int, Chunk]]:
    """Each chunk that has images, and where its tokens begin in the batch."""
    offset = 0
    for chunk in batch.chunks:
        if chunk.images:
            yield offset, chunk
        offset += len(chunk.tokens)


class View(NamedTuple):
    """The positions start .. end - 1 of a chunk, which see `images`, each from its own position on."""

    start: int
    end: int
    images: tuple[Image, ...]


def views(chunk: Chunk) -> Iterator[View]:
    """What a chunk of Llama 3.2 Vision sees: its positions from the first image on, cut where a group begins."""
    end = chunk.start + len(chunk.tokens)
    groups: list[list[Image]] = []
    for image in chunk.images:
        if groups and image.positions[0] == groups[-1][-1].positions[0] + 1:
            groups[-1].append(image)
        else:
            groups.append([image])
    begins = [group[0].positions[0] for group in groups]
    for group, (begin, limit) in zip(groups, pairwise([*begins, end]), strict=True):
        start = max(begin, chunk.start)
        if start < limit:
            yield View(start, limit, tuple(group))
