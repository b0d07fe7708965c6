"""Pictures read back from the SVG that shows them."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["SVG", "parsed", "pixels"]

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    """Well-formed or an error."""
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def pixels(svg: str) -> NDArray[np.uint8]:
    """The first picture in it."""
    data = re.search(r'class="px" href="data:image/png;base64,([^"]+)"', svg)
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("RGBA"))
