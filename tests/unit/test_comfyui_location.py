"""Which ComfyUI a command outside of one takes."""

import sys

import pytest

from teefusion_core.errors import InvalidConfig
from teefusion_core.files import comfyui_location as comfyui_place


def comfyui(folder):
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


@pytest.fixture
def around(tmp_path, monkeypatch):
    """Return where one may lie around the pack, where the pack may have its own."""
    places = tmp_path / "around", tmp_path / "own"
    monkeypatch.setattr(comfyui_place, "AROUND", places[0])
    monkeypatch.setattr(comfyui_place, "OWN", places[1])
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return places


def first():
    comfyui_place.import_from_comfyui()
    return sys.path[0]


def test_the_one_around_comes_before_the_own_one(around):
    comfyui(around[1])
    assert first() == str(around[1])
    comfyui(around[0])
    assert first() == str(around[0])


def test_the_named_one_comes_before_both(around, tmp_path, monkeypatch):
    for place in around:
        comfyui(place)
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui(tmp_path / "named")))
    assert first() == str(tmp_path / "named")


@pytest.mark.parametrize("named", [True, False])
def test_without_any_it_says_where_it_looked(around, tmp_path, monkeypatch, named):
    if named:
        comfyui(around[0])
        monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "nothing"))
    (around[1] / "comfy").mkdir(parents=True)  # a folder of this name alone is none
    with pytest.raises(InvalidConfig, match="nothing" if named else "COMFYUI_PATH"):
        first()
