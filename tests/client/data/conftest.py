"""Trees of images, written as a folder or as a zip."""

import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

MakePng = Callable[[int], bytes]
WriteSource = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture(scope="session")
def make_png() -> MakePng:
    """A greyscale image of 20 pixels a side, all of one value."""

    def make(value: int = 0) -> bytes:
        buffer = BytesIO()
        Image.new("L", (20, 20), value).save(buffer, "png")
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def write_source() -> WriteSource:
    """Files below a folder, or in a zip where the path says so; a last slash makes an empty folder."""

    def write(path: Path, files: Mapping[str, bytes]) -> Path:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            return path
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            place = path / name
            if name.endswith("/"):
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
        return path

    return write
