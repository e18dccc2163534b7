"""Try public node packs beside this one, and renew their table in docs/compatibility.md.

python3 scripts/packs.py FOLDER   FOLDER holds a clone of each pack, and in .site the Python packages that they need
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from runner.places import ROOT
from runner.setup import enter_environment, set_up
from runner.stop import Stop, run, say

SERVER_TESTS = "tests/server/test_packs.py"


def folder_of_packs() -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="clones of the packs")
    folder: Path = parser.parse_args().folder.resolve()
    if not any((path / "__init__.py").is_file() for path in folder.glob("*")):
        raise Stop(f"{folder} contains no node pack; clone each pack into its own folder there, then run again.")
    return folder


def main() -> int:
    folder = folder_of_packs()
    comfyui = set_up()
    enter_environment()
    os.environ |= {
        "TEEFUSION_PACKS": str(folder), "PYTHONPATH": str(folder / ".site"), "COMFYUI_PATH": str(comfyui),
    }  # fmt: skip
    sys.path.append(str(ROOT))
    from lab.benches import _packs
    from lab.benches._pages import update
    from lab.benches._report import RESULTS, print_table, write
    from lab.demo_world.host import use_comfy

    use_comfy(comfyui)
    say("one ComfyUI with all packs")
    if subprocess.run([sys.executable, "-m", "pytest", "-q", SERVER_TESTS], cwd=ROOT, check=False).returncode:
        raise Stop(f"{SERVER_TESTS} has failures. Fix them, then run again.")
    say("each pack against its twin")
    result = _packs.measure()
    print_table(_packs.table(result))
    say(f"written to {write('packs', result)}")
    update(ROOT, RESULTS)
    return 0


if __name__ == "__main__":
    run(main)
