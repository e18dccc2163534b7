"""Run folders: a checkpoint is there whole or not at all, of this run or refused in words."""

import errno
import logging
import os
import resource
from contextlib import nullcontext

import pytest
import torch

from teefusion_core.errors import CheckpointMismatch, CheckpointNotSaved, InvalidConfig
from teefusion_core.files import output_file
from teefusion_core.files import state_file as tree_file
from teefusion_core.training import checkpoint as run_folder
from teefusion_core.training import run_identity
from teefusion_core.training.checkpoint import CheckpointFolder

BASE, SETTINGS = "0123456789abcdef", {"lr": 1e-3, "steps": 30}


def tensor(step, size=50):
    return torch.arange(size) + float(step)


def save(folder, *steps, size=50):
    for step in steps:
        shared = {"weights": {"a": tensor(step, size)}, "average": {"a": tensor(step, size).bfloat16()}}
        folder.save(step, SETTINGS, shared, {"data": {"position": step, "left": [1.5, None, "x"]}})


def assert_is(stored, step, size=50):
    assert stored.step == step
    assert torch.equal(stored.shared["weights"]["a"], tensor(step, size))
    assert torch.equal(stored.shared["average"]["a"], tensor(step, size).bfloat16())
    assert stored.own == {"data": {"position": step, "left": [1.5, None, "x"]}}


def names_in(path):
    return sorted(entry.name for entry in path.iterdir())


def opened(root, **options):
    return CheckpointFolder(root, "my run", **dict(base=BASE) | options)


@pytest.fixture
def folder(tmp_path):
    return opened(tmp_path)


class TestKeeping:
    def test_nothing_is_written_before_the_first_save(self, folder):
        assert folder.load(SETTINGS) is None and folder.steps() == [] and not folder.path.exists()

    def test_what_is_saved_is_loaded(self, tmp_path, folder):
        save(folder, 10)
        stored = opened(tmp_path).load(SETTINGS)
        assert_is(stored, 10)
        assert stored.shared["average"]["a"].dtype == torch.bfloat16

    def test_the_newest_are_kept(self, tmp_path):
        folder = opened(tmp_path, keep=2)
        save(folder, 0, 10, 20, 30)
        assert names_in(folder.path) == ["step-00000020", "step-00000030"]
        assert_is(folder.load(SETTINGS), 30)

    def test_what_a_killed_run_left_is_swept(self, folder):
        save(folder, 10)
        for leftover in ("step-00000020.part", "step-00000005.old.part"):
            (folder.path / leftover).mkdir()
            (folder.path / leftover / "weights.safetensors").write_bytes(b"half")
        assert_is(folder.load(SETTINGS), 10)
        save(folder, 20)
        assert names_in(folder.path) == ["step-00000010", "step-00000020"]

    def test_every_byte_is_flushed_before_the_checkpoint_gets_its_name(self, folder, monkeypatch):
        events = []
        monkeypatch.setattr(output_file, "flush", lambda path: events.append(path.name))
        monkeypatch.setattr(run_folder, "flush", lambda path: events.append(path.name))
        replace = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
        save(folder, 10)
        files = {"rank-0.safetensors", "weights.safetensors", "average.safetensors", "checkpoint.json"}
        renamed = len(events) - 1 - events[::-1].index("rename")
        assert {*files, "step-00000010.part"} == {name.partition(f".{os.getpid()}")[0] for name in events[:renamed]} - {
            "rename"
        }
        assert events[renamed + 1 :] == ["my run", folder.path.parent.name]


def garbled(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0x10]) + data[len(data) // 2 + 1 :]


HARMS = {"cut": lambda data: data[:-30], "garbled": garbled, "emptied": lambda data: b"", "removed": None}


def harm(path, how="cut"):
    if HARMS[how]:
        path.write_bytes(HARMS[how](path.read_bytes()))
    else:
        path.unlink()


class TestDamage:
    @pytest.mark.parametrize("file", ["weights.safetensors", "rank-0.safetensors", "checkpoint.json"])
    @pytest.mark.parametrize("how", HARMS)
    def test_the_checkpoint_before_is_taken_with_a_warning(self, folder, caplog, file, how):
        save(folder, 10, 20)
        harm(folder.path / "step-00000020" / file, how)
        with caplog.at_level(logging.WARNING):
            assert_is(folder.load(SETTINGS), 10)
        assert "step 20" in caplog.text

    def test_an_empty_or_renamed_checkpoint_is_a_damaged_one(self, folder):
        save(folder, 10, 20)
        (folder.path / "step-00000020").rename(folder.path / "step-00000040")
        (folder.path / "step-00000050").mkdir()
        assert_is(folder.load(SETTINGS), 10)

    def test_a_damaged_one_is_replaced(self, folder):
        save(folder, 10, 20)
        harm(folder.path / "step-00000020" / "weights.safetensors")
        folder.load(SETTINGS)
        save(folder, 20)
        assert names_in(folder.path) == ["step-00000010", "step-00000020"]
        assert_is(folder.load(SETTINGS), 20)

    def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(self, folder):
        save(folder, 10, 20)
        for step in (10, 20):
            harm(folder.path / f"step-000000{step}" / "weights.safetensors")
        with pytest.raises(CheckpointMismatch):
            folder.load(SETTINGS)


def full_disk(path, tree):
    path.write_bytes(b"half of a file")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    @pytest.mark.parametrize("culprit", ["write_tree", "flush"])
    def test_no_space_is_reported_and_the_checkpoints_before_stay_whole(self, folder, monkeypatch, culprit):
        save(folder, 10)
        monkeypatch.setattr(
            run_folder, culprit, full_disk if culprit == "write_tree" else lambda path: full_disk(path, 0)
        )
        with pytest.raises(CheckpointNotSaved, match="20.*No space left") as caught:
            save(folder, 20)
        assert caught.value.__cause__.errno == errno.ENOSPC
        monkeypatch.undo()
        assert names_in(folder.path) == ["step-00000010"]
        assert_is(folder.load(SETTINGS), 10)
        save(folder, 20)
        assert_is(folder.load(SETTINGS), 20)

    def test_a_file_that_may_not_grow(self, folder):
        """As on a disk that is really full; nothing is mounted for it."""
        save(folder, 10, size=50_000)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(CheckpointNotSaved, match="30"):
                save(folder, 30, size=50_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert names_in(folder.path) == ["step-00000010"]
        assert_is(folder.load(SETTINGS), 10, size=50_000)

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "my run").write_text("a file is in the way")
        with pytest.raises(CheckpointNotSaved, match="my run"):
            save(opened(tmp_path), 0)


class TestRefusals:
    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", "../x", "/tmp/x", "a/b", "a\\b", "..\\x", "C:x", ".hidden", "x.", "x ", " x", "a\0b", "a\nb",
         "*", "x" * 101, "CON", "nul", "com1", "LPT\u00b9", "aux.txt", "Con .x", "a.safetensors", "A.SAFETENSORS"],
    )  # fmt: skip
    def test_names_stay_in_the_folder(self, tmp_path, name):
        with pytest.raises(InvalidConfig):
            CheckpointFolder(tmp_path, name, base=BASE)

    @pytest.mark.parametrize(
        "name", ["a", "my run", "w2sd-v1.2_final", "a..b", "\u732b", "console", "com", "com10", "null", "a.safe"]
    )
    def test_plain_names_are_taken(self, tmp_path, name):
        assert CheckpointFolder(tmp_path, name, base=BASE).path == tmp_path / name

    def test_a_link_to_another_place_is_refused(self, tmp_path):
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "my run").symlink_to(tmp_path)
        with pytest.raises(InvalidConfig):
            opened(tmp_path / "runs")

    @pytest.mark.parametrize("name", ["../weights", "Weights", "a/b", ""])
    def test_part_names_stay_in_the_checkpoint(self, folder, name):
        with pytest.raises(ValueError):
            folder.save(0, SETTINGS, {name: {}}, None)
        assert names_in(folder.path) == []

    def test_keep_nothing(self, tmp_path):
        with pytest.raises(InvalidConfig, match="keep is 0"):
            opened(tmp_path, keep=0)

    def test_another_base(self, tmp_path, folder):
        save(folder, 10)
        with pytest.raises(CheckpointMismatch, match=f"{BASE}.*other"):
            opened(tmp_path, base="other").load(SETTINGS)

    def test_another_number_of_processes(self, folder):
        save(folder, 10)
        folder.processes.size = 2
        folder.processes.any = lambda flag: flag
        with pytest.raises(CheckpointMismatch, match="1.*2"):
            folder.load(SETTINGS)

    def test_another_format(self, folder, monkeypatch):
        monkeypatch.setattr(run_identity, "FORMAT", "teefusion-run/9")
        save(folder, 10)
        monkeypatch.undo()
        with pytest.raises(CheckpointMismatch, match="teefusion-run/9"):
            folder.load(SETTINGS)

    def test_a_process_without_the_same_disk(self, folder):
        folder.processes.size = 2
        folder.processes.all_or_none = nullcontext
        with pytest.raises(CheckpointNotSaved, match="rank-1.safetensors"):
            save(folder, 10)
        assert names_in(folder.path) == []


class TestSettings:
    def test_changes_are_named(self, tmp_path):
        save(opened(tmp_path, described={"rank": 4, "teacher": "CFG"}), 10)
        with pytest.raises(InvalidConfig, match="lr.*0.001.*0.01.*rank.*4.*8"):
            opened(tmp_path, described={"rank": 8, "teacher": "CFG"}).load({"lr": 1e-2, "steps": 30})

    def test_new_or_missing_settings_are_changes(self, tmp_path):
        save(opened(tmp_path, described={"rank": 4}), 10)
        with pytest.raises(InvalidConfig, match="rank.*4.*width.*7"):
            opened(tmp_path, described={"width": 7}).load(SETTINGS)

    def test_accepted_changes_resume(self, tmp_path, folder):
        save(folder, 10)
        assert_is(opened(tmp_path, accept_changes=["lr"]).load({"lr": 1e-2, "steps": 30}), 10)
        with pytest.raises(InvalidConfig, match="steps.*30.*40"):
            opened(tmp_path, accept_changes=["lr"]).load({"lr": 1e-2, "steps": 40})

    def test_a_slip_in_an_accepted_name_is_reported(self, tmp_path, folder):
        save(folder, 10)
        with pytest.raises(InvalidConfig, match="rate.*lr, steps"):
            opened(tmp_path, accept_changes=["rate"]).load(SETTINGS)

    def test_settings_are_compared_as_they_are_stored(self, tmp_path):
        save(opened(tmp_path, described={"sizes": (1, 2)}), 10)
        assert_is(opened(tmp_path, described={"sizes": [1, 2]}).load(SETTINGS), 10)


def test_trees_that_json_would_bend_are_refused(tmp_path):
    for tree in ({1: "a"}, {"a": {2: "b"}}, {"__tensor__": "x"}, {"a": object()}):
        with pytest.raises(TypeError):
            tree_file.write_tree(tmp_path / "x.safetensors", tree)
    with pytest.raises(ValueError):
        tree_file.write_tree(tmp_path / "x.safetensors", {"a": float("nan")})
