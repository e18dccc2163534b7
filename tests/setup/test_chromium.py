"""The browser of the browser tests: found, installed by root, else asked for in one sentence."""

import os
import stat

import pytest
from runner import chromium, stop


@pytest.fixture
def bare_path(tmp_path, monkeypatch):
    """Put one empty folder on the path, nothing in CHROMIUM; return a function that adds a program to it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("runner.commands.LOG", tmp_path / "log")

    def program(name, text):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return program


def test_a_named_program_comes_first_then_the_path(bare_path, monkeypatch):
    expected = bare_path("chromium-browser", "exit 0")
    assert chromium.find_chromium() == expected
    chromium.make_chromium()
    mine = bare_path("my-chrome", "exit 0")
    monkeypatch.setenv("CHROMIUM", str(mine))
    assert chromium.find_chromium() == mine
    monkeypatch.setenv("CHROMIUM", "/nowhere/chrome")
    with pytest.raises(stop.Stop, match="/nowhere/chrome"):
        chromium.find_chromium()


def test_none_without_the_right_to_install(bare_path, monkeypatch):
    bare_path("apt-get", "exit 0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(stop.Stop, match="No browser is on the path .* install Chromium"):
        chromium.make_chromium()


def test_root_gets_debians(bare_path, monkeypatch):
    """With a stand-in for apt-get that writes down how it was called."""
    script = bare_path("apt-get", 'echo "$DEBIAN_FRONTEND $@" >> "$(/usr/bin/dirname "$0")/calls"')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    chromium.make_chromium()
    first, second = script.with_name("calls").read_text().splitlines()
    assert first == "noninteractive update"
    assert second.startswith("noninteractive install -y --no-install-recommends chromium ")


def test_an_installation_that_fails_is_one_sentence(bare_path, monkeypatch):
    bare_path("apt-get", "echo E: Connection timed out; exit 100")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(stop.Stop, match="Chromium could not be installed: see") as caught:
        chromium.make_chromium()
    assert "\n" not in str(caught.value)


def test_tiers_go_on_without_a_browser(bare_path, monkeypatch, capsys):
    from runner import tiers

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tiers._browser()
    assert "browser: No browser is on the path" in capsys.readouterr().out
