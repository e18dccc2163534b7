"""Folders of captioned pictures, the broken ones among them."""

import re
import struct
import zlib

import pytest
import torch
from PIL import Image

from teefusion_core.errors import InvalidConfig
from teefusion_core.files.image_folder import captioned, pictures_in


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("b.png", "a.jpg", "c.webp")):
        Image.new("RGB", (40, 20), (60 * number, 0, 255)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" caption of {name}\n")
    return tmp_path


def huge_png(path, width, height):
    """A PNG of any size whose header is all that there is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)


def test_pictures_come_in_the_order_of_their_names(folder):
    found = captioned(folder)
    assert [one.path.name for one in found] == ["a.jpg", "b.png", "c.webp"]
    assert found[0].caption == "caption of a.jpg"


def test_numbers_in_names_count(tmp_path):
    names = ["img10.png", "img2.png", "IMG1.png", "img2b.png", "a.tiff", "2.png", "10.png"]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = [path.name for path in pictures_in(tmp_path)]
    assert found == ["2.png", "10.png", "a.tiff", "IMG1.png", "img2.png", "img2b.png", "img10.png"]


def test_what_is_skipped_is_counted_and_named(folder, caplog):
    for name in ("notes.md", "clip.mp4", ".hidden.png", "unused.txt"):
        (folder / name).write_text("no picture")
    assert len(pictures_in(folder)) == 3
    assert re.search(r"2 files.*clip\.mp4, notes\.md", caplog.text) and "hidden" not in caplog.text


def test_folders_inside_are_read_on_request(folder):
    (folder / "in").mkdir()
    (folder / "a.jpg").rename(folder / "in" / "a.jpg")
    (folder / "a.txt").rename(folder / "in" / "a.txt")
    assert [one.path.name for one in captioned(folder)] == ["b.png", "c.webp"]
    assert [one.path.name for one in captioned(folder, subfolders=True)] == ["b.png", "c.webp", "a.jpg"]


def test_the_middle_is_taken_at_the_size_asked_for(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 255, 0), (10, 0, 30, 20))
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    pixels = captioned(tmp_path)[0].pixels(16, 16)
    assert pixels.shape == (1, 16, 16, 3) and pixels.dtype == torch.float32
    assert torch.equal(pixels[0, 8, 8], torch.tensor([0.0, 1.0, 0.0])) and float(pixels[..., 0].mean()) < 0.1


def test_a_picture_lying_on_its_side_is_put_upright(tmp_path):
    picture = Image.new("RGB", (20, 20), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "a.txt").write_text("x")
    pixels = captioned(tmp_path)[0].pixels(20, 20)
    assert float(pixels[0, :8].mean()) < 0.1 and float(pixels[0, 12:].mean()) > 0.9


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_picture_is_named(folder, content):
    (folder / "b.png").write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"b\.png"):
        captioned(folder)[1].pixels(8, 8)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 10_000), (50_000, 50_000)], ids=str)
def test_a_huge_picture_is_refused_by_its_header(folder, size):
    huge_png(folder / "b.png", *size)
    with pytest.raises(InvalidConfig, match=r"b\.png"):
        captioned(folder)[1].pixels(8, 8)


@pytest.mark.parametrize("caption", [None, "", "  \n"])
def test_a_missing_caption_is_named(folder, caption):
    text = folder / "b.txt"
    text.unlink()
    if caption is not None:
        text.write_text(caption)
    with pytest.raises(InvalidConfig, match=r"b\.png.*b\.txt"):
        captioned(folder)


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(InvalidConfig):
        captioned(tmp_path)
    with pytest.raises(InvalidConfig, match="nowhere"):
        captioned(tmp_path / "nowhere")
