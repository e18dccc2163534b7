"""Write every workflow as an API prompt, for programs that send them to ComfyUI.

python3 scripts/api_prompts.py    after a change of a workflow or of a node; writes workflows/api/*.json
"""

import argparse

from runner.setup import enter_environment, set_up
from runner.stop import run, say


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    comfyui = set_up()
    enter_environment()

    from runner.api_prompts import FOLDER, api_prompts, written
    from runner.places import BASE, HOST
    from runner.server import make_base, running

    FOLDER.mkdir(exist_ok=True)
    with running(comfyui, make_base(BASE), HOST / "comfyui.log") as server:
        for name, prompt in api_prompts(server.get("/object_info")).items():
            (FOLDER / f"{name}.json").write_text(written(prompt), encoding="utf-8")
            say(f"{name}.json")
    return 0


if __name__ == "__main__":
    run(main)
