"""preprocessor_config.json -> how many tiles an image may have; what else it says must be what herder/images does.

Keys as in transformers' MllamaImageProcessor, Llama4ImageProcessor and their base classes. transformers 5 writes them
into processor_config.json, under `image_processor`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from herder.core.config import Llama4Vision, MllamaVision
from herder.core.errors import UnsupportedModel
from herder.weights.fields import Fields, short
from herder.weights.keys_hf import refuse_unknown

MAX_TILES = 64
BILINEAR = 2  # of Pillow's filters
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])

_HARMLESS = (
    "image_processor_type feature_extractor_type processor_class auto_map _auto_class return_tensors data_format "
    "input_data_format device disable_grouping default_to_square crop_size pad_size image_seq_length do_pad"
)
_NEUTRAL: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("do_resize", (True,)),
    ("do_rescale", (True,)),
    ("do_normalize", (True,)),
    ("do_convert_rgb", (True,)),
    ("do_center_crop", (False,)),
    ("resample", (BILINEAR,)),
    ("resize_to_max_canvas", (False,)),
)


def image_keys(directory: str, documents: Mapping[str, Any]) -> Fields | None:
    """What the files say about preprocessing images, None where they say nothing. documents: file name -> its JSON."""
    processor = documents.get("processor_config.json", {}).get("image_processor")
    if isinstance(processor, dict):
        prefix = "image_processor."
        values = {prefix + key: value for key, value in processor.items()}
        return Fields(f"{directory}/processor_config.json", values, prefix)
    settings = documents.get("preprocessor_config.json")
    return None if settings is None else Fields(f"{directory}/preprocessor_config.json", settings)


def with_preprocessing(keys: Fields, vision: MllamaVision | Llama4Vision) -> MllamaVision | Llama4Vision:
    """The image encoder with the number of tiles that its preprocessing cuts at most. Raises ModelFileError and
    UnsupportedModel for another way of preprocessing than ours."""
    for key, allowed in _NEUTRAL:
        keys.neutral(key, allowed, "another way of preprocessing images")
    for key in _HARMLESS.split():
        keys.get(key)
    mean, deviation = _CLIP if isinstance(vision, MllamaVision) else _HALVES
    for key, expected in (("image_mean", mean), ("image_std", deviation), ("rescale_factor", [1 / 255])):
        value = keys.get(key)
        given = value if isinstance(value, list) else [value]
        if value is not None and not _close(given, expected):
            raise UnsupportedModel(
                f"{keys.where}: {keys.prefix}{key} is {short(value)}; supported for this model is {short(expected)}"
            )
    size = keys.get("size")
    if size not in (None, vision.tile, {"height": vision.tile, "width": vision.tile}):
        raise keys.wrong("size", size, f"config.json says tiles of {vision.tile} x {vision.tile}")
    if isinstance(vision, MllamaVision):
        keys.neutral("max_image_tiles", (vision.max_tiles,), f"config.json says {vision.max_tiles}")
    else:
        vision = replace(vision, max_tiles=keys.integer("max_patches", vision.max_tiles, high=MAX_TILES))
    refuse_unknown(keys)
    return vision


def _close(values: list[Any], expected: list[float]) -> bool:
    return len(values) == len(expected) and all(
        type(value) in (int, float) and 0 < value < 2 and math.isclose(value, wanted, rel_tol=1e-6)
        for value, wanted in zip(values, expected, strict=True)
    )
