"""Meta's image preprocessing, imported without torchvision.

Meta's two files take five things from torchvision, which does not install beside a PyTorch for the CPU. They stand here
as torchvision defines them for Pillow's images: a resize is Pillow's own, bilinear.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any


def meta_transforms() -> tuple[Any, Any]:
    """The modules llama_models.llama3.multimodal.image_transform and llama_models.llama4.preprocess."""
    from PIL import ImageFile

    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: sys.modules.get(name) for name in names}
    root, transforms, functional = (ModuleType(name) for name in names)
    root.transforms, transforms.functional, functional.resize = transforms, functional, resize  # type: ignore[attr-defined]
    transforms.InterpolationMode = SimpleNamespace(BILINEAR="bilinear")  # type: ignore[attr-defined]
    for one in (Compose, Resize, ToTensor, Normalize):
        setattr(transforms, one.__name__, one)
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    sys.modules |= dict(zip(names, (root, transforms, functional), strict=True))
    try:
        llama3 = importlib.import_module("llama_models.llama3.multimodal.image_transform")
        llama4 = importlib.import_module("llama_models.llama4.preprocess")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient  # Meta's file sets it for the whole process
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return llama3, llama4


def resize(image: Any, size: tuple[int, int], interpolation: str = "bilinear") -> Any:
    """size: (height, width)."""
    from PIL import Image

    assert interpolation == "bilinear"
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


class Resize:
    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, image: Any) -> Any:
        return resize(image, self.size)


class ToTensor:
    def __call__(self, image: Any) -> Any:
        import numpy as np
        import torch

        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


class Normalize:
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], inplace: bool) -> None:
        self.mean, self.std = mean, std

    def __call__(self, image: Any) -> Any:
        import torch

        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std


class Compose:
    def __init__(self, steps: list[Any]) -> None:
        self.steps = steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image
