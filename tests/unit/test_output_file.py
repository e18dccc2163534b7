"""Output files: whole or not at all, never over what is not ours."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from teefusion_core.errors import NotWritten, TargetExists, TeEFusionError
from teefusion_core.files.output_file import check_space, check_target, write_text, written


def test_a_new_file_in_a_new_folder_is_free(tmp_path):
    check_target(tmp_path / "new" / "scores.json")
    write_text(tmp_path / "new" / "scores.json", "1")
    assert (tmp_path / "new" / "scores.json").read_text() == "1"


@pytest.mark.parametrize("kind", ["file", "folder", "link to nowhere"])
def test_what_exists_is_refused(tmp_path, kind):
    target = tmp_path / "taken"
    {"file": target.touch, "folder": target.mkdir, "link to nowhere": lambda: target.symlink_to("gone")}[kind]()
    with pytest.raises(TargetExists, match="taken"):
        check_target(target)
    if kind == "file":
        check_target(target, ours=True)
    else:
        with pytest.raises(TargetExists, match="taken"):
            check_target(target, ours=True)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten, match="scores.json"):
        check_target(tmp_path / "file" / "scores.json")


def test_a_missing_drive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as all folders of such a drive on Windows
    for check in (lambda: check_target(tmp_path / "scores.json"), lambda: check_space(tmp_path, {"apples": 1})):
        with pytest.raises(NotWritten, match="no drive /"):
            check()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("ours")])
def test_a_failure_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "student.bin"
    target.write_text("old")
    with pytest.raises(NotWritten if isinstance(error, OSError) else ValueError), written(target) as part:
        part.write_text("half")
        raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["student.bin"]


def test_a_failure_to_write_is_one_of_our_errors_and_one_of_the_system(tmp_path):
    assert issubclass(NotWritten, TeEFusionError) and issubclass(NotWritten, OSError)


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    target = tmp_path / "a[1].txt"
    code = (
        "import sys, time; from pathlib import Path; from teefusion_core.files.output_file import written\n"
        "with written(Path(sys.argv[1])) as part: part.write_text('half'); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(target)])
    while not any(path.read_text() == "half" for path in tmp_path.glob("*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    (tmp_path / "a1.txt.1.part").touch()  # of another file
    write_text(target, "whole")
    assert sorted(os.listdir(tmp_path)) == ["a1.txt.1.part", "a[1].txt"]


class TestSpace:
    def test_what_is_needed_is_said(self, tmp_path):
        text = check_space(tmp_path / "run", {"apples": 2**29, "pears": 2**30})
        assert "1.50 GiB" in text and "0.50 GiB apples + 1.00 GiB pears" in text
        free = float(text.rpartition("; ")[2].partition(" GiB are free")[0])
        assert free == pytest.approx(shutil.disk_usage(tmp_path).free / 2**30, abs=1)

    def test_too_little_is_refused_with_both_numbers(self, tmp_path):
        free = shutil.disk_usage(tmp_path).free
        with pytest.raises(NotWritten, match=r"2\.00 GiB apples.*GiB are free"):
            check_space(tmp_path, {"apples": 2 * 2**30, "pears": free})

    def test_files_of_an_earlier_start_are_part_of_it(self, tmp_path):
        with (tmp_path / "apples").open("wb") as file:
            file.truncate(2**40)  # a sparse file
        check_space(tmp_path, {"apples": 2**40})
        with pytest.raises(NotWritten):
            check_space(tmp_path, {"apples": 2**40, "pears": shutil.disk_usage(tmp_path).free + 2**30})
