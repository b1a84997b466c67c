"""preprocessor_config.json: the tiles it allows, and what must be as herder/images does it."""

from __future__ import annotations

from typing import Any

import pytest

from herder.core.errors import HerderError, UnsupportedModel
from herder.images import prepare
from herder.weights import images_hf
from herder.weights.config_hf import config_from_hf
from herder.weights.images_hf import image_keys, with_preprocessing
from tests.weights.test_config_generations import MLLAMA_11B, SCOUT

MLLAMA = config_from_hf("c", MLLAMA_11B).vision
LLAMA4 = config_from_hf("c", SCOUT).vision
assert MLLAMA is not None and LLAMA4 is not None
OF_MLLAMA: dict[str, Any] = {  # meta-llama/Llama-3.2-11B-Vision-Instruct
    "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "MllamaImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711], "max_image_tiles": 4, "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": 560, "width": 560},
}  # fmt: skip
OF_LLAMA4: dict[str, Any] = {  # meta-llama/Llama-4-Scout-17B-16E-Instruct
    "crop_size": None, "data_format": "channels_first", "default_to_square": True, "device": None,
    "do_center_crop": None, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "Llama4ImageProcessorFast", "image_std": [0.5, 0.5, 0.5],
    "input_data_format": None, "max_patches": 16, "processor_class": "Llama4Processor", "resample": 2,
    "rescale_factor": 0.00392156862745098, "resize_to_max_canvas": False, "return_tensors": None,
    "size": {"height": 336, "width": 336},
}  # fmt: skip


def test_published_files() -> None:
    for values, vision in ((OF_MLLAMA, MLLAMA), (OF_LLAMA4, LLAMA4)):
        keys = image_keys("d", {"preprocessor_config.json": values})
        assert keys is not None and with_preprocessing(keys, vision) == vision
        keys = image_keys("d", {"processor_config.json": {"image_processor": values}, "preprocessor_config.json": {}})
        assert keys is not None and with_preprocessing(keys, vision) == vision
    assert image_keys("d", {"processor_config.json": {"processor_class": "X"}}) is None
    keys = image_keys("d", {"preprocessor_config.json": OF_LLAMA4 | {"max_patches": 4}})
    assert keys is not None and with_preprocessing(keys, LLAMA4).max_tiles == 4


def test_the_constants_are_those_that_images_are_prepared_with() -> None:
    ours = [tuple(map(tuple, pair)) for pair in (images_hf._CLIP, images_hf._HALVES)]
    assert ours == [prepare.CLIP, prepare.HALVES]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean is \[0.5, 0.5, 0.5\]; supported for this model is \[0.48145"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0; supported"),
        ({"resample": 3}, "resample = 3 .another way of preprocessing images"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"size": {"height": 448, "width": 448}}, "size is .*: config.json says tiles of 560 x 560"),
        ({"max_image_tiles": 9}, r"max_image_tiles = 9 \(config.json says 4\)"),
        ({"sharpen": 2}, "'sharpen' = 2 is not known here"),
        ({"image_std": [[1]]}, "image_std is"),
    ],
)
def test_another_way_is_refused(changes: dict[str, Any], message: str) -> None:
    keys = image_keys("dir", {"preprocessor_config.json": OF_MLLAMA | changes})
    assert keys is not None
    with pytest.raises(HerderError, match=message) as caught:
        with_preprocessing(keys, MLLAMA)
    assert str(caught.value).startswith("dir/preprocessor_config.json: ")
    assert isinstance(caught.value, UnsupportedModel) or "size" in changes
