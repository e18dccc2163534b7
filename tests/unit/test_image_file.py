"""Image files of every kind show what they show elsewhere."""

import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from teefusion_core.errors import InvalidConfig
from teefusion_core.files.image_file import opened

SIZE = (8, 8)
RED, WHITE = (255, 0, 0), (255, 255, 255)


def mean(path):
    return np.asarray(opened(path), dtype=float).reshape(-1, 3).mean(0)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("grey", [0, 0x4000, 0x8080, 0xFFFF])
def test_16_bits_keep_their_brightness(tmp_path, suffix, grey):
    Image.fromarray(np.full(SIZE, grey, np.uint16)).save(tmp_path / f"a.{suffix}")
    assert mean(tmp_path / f"a.{suffix}") == pytest.approx([grey / 257] * 3, abs=0.51)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[:, 4:, 3] = 255
    image = Image.fromarray(rgba).convert(mode) if mode != "P" else Image.new("P", SIZE, 0)
    if mode == "P":
        image.putpalette([10, 20, 30, 0, 0, 0])
        image.paste(1, (4, 0, 8, 8))
        image.save(tmp_path / "a.png", transparency=0)
    else:
        image.save(tmp_path / "a.png")
    left, right = (opened(tmp_path / "a.png").getpixel((x, 4)) for x in (1, 6))
    assert (left, right) == (WHITE, (0, 0, 0))


def test_half_transparent_is_half_white(tmp_path):
    Image.new("RGBA", SIZE, (0, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert mean(tmp_path / "a.webp") == pytest.approx([127] * 3, abs=1)


@pytest.mark.parametrize(("suffix", "mode", "colour"), [
    ("jpg", "CMYK", (0, 255, 255, 0)), ("tiff", "CMYK", (0, 255, 255, 0)), ("gif", "RGB", RED), ("tga", "RGB", RED),
    ("bmp", "RGB", RED), ("ppm", "RGB", RED), ("ico", "RGB", RED), ("jp2", "RGB", RED),
])  # fmt: skip
def test_all_that_pillow_reads(tmp_path, suffix, mode, colour):
    Image.new(mode, (16, 16), colour).save(tmp_path / f"a.{suffix}")
    assert mean(tmp_path / f"a.{suffix}") == pytest.approx(RED, abs=4)


def test_of_an_animation_the_first_frame(tmp_path):
    first, second = (Image.new("RGB", SIZE, colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert mean(tmp_path / "a.gif") == pytest.approx(RED, abs=2)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_turned_upright(tmp_path, turn):
    from PIL import ImageOps

    image = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3)
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(
        np.asarray(opened(tmp_path / "a.png")), np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    )


def test_damage_in_the_exif_data_hurts_no_pixel(tmp_path):
    image = Image.new("RGB", (8, 4), RED)
    exif = image.getexif()
    exif[0x0112], exif[0x011A] = 6, TiffImagePlugin.IFDRational(72, 1)
    image.save(tmp_path / "a.jpg", exif=exif)
    raw = (tmp_path / "a.jpg").read_bytes()
    for order in "<>":
        raw = raw.replace(struct.pack(f"{order}II", 72, 1), struct.pack(f"{order}II", 72, 0))
    (tmp_path / "a.jpg").write_bytes(raw)
    assert opened(tmp_path / "a.jpg").size == (4, 8) and mean(tmp_path / "a.jpg") == pytest.approx(RED, abs=4)


def test_damage_in_the_xmp_data_hurts_no_pixel(tmp_path):
    Image.new("RGB", SIZE, RED).save(tmp_path / "a.jpg")
    raw = (tmp_path / "a.jpg").read_bytes()
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta>\xa8\xff tiff:Orientation="6"</x:xmpmeta>'
    (tmp_path / "a.jpg").write_bytes(raw[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + raw[2:])
    assert mean(tmp_path / "a.jpg") == pytest.approx(RED, abs=4)


@pytest.mark.parametrize("kind", ["float", "script", "page"])
def test_what_cannot_be_shown_is_named(tmp_path, kind):
    path = tmp_path / "a.tiff"
    if kind == "float":
        Image.fromarray(np.ones(SIZE, np.float32)).save(path)
    elif kind == "script":  # Pillow would start another program for it
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    else:
        path.write_text("<html>404</html>")
    with pytest.raises(InvalidConfig, match=r"^a\.tiff "):
        opened(path)
