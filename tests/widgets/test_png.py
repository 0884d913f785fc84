from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipelab.widgets.png import encode


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 200)])
def test_any_reader_gets_the_pixels_back(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode(pixels)))
    assert image.mode == "RGB"
    assert (np.asarray(image) == pixels).all()
