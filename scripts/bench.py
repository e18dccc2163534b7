"""Measure what this pack claims, on this machine.

python3 scripts/bench.py             every benchmark
python3 scripts/bench.py overhead    only the named ones; numbers go to lab/results/<name>.json, then to the pages
python3 scripts/bench.py --render    measure nothing, make the pages anew from the numbers that stand
"""

import argparse
import importlib
import sys
from pathlib import Path

from runner.setup import enter_environment, set_up
from runner.stop import run, say

BENCHES = Path(__file__).resolve().parents[1] / "lab" / "benches"


def names() -> list[str]:
    """Return what can be measured: every module of benches/ that is no helper."""
    return sorted(path.stem for path in BENCHES.glob("*.py") if not path.stem.startswith("_"))


def arguments() -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=f"one of {', '.join(names())}; without names, all")
    parser.add_argument("--render", action="store_true", help="measure nothing, make the pages anew")
    given = parser.parse_args()
    chosen: list[str] = given.name
    unknown = [name for name in chosen if name not in names()]
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; choose from {', '.join(names())}")
    if given.render and chosen:
        parser.error("--render measures nothing; leave the names out")
    return chosen or ([] if given.render else names())


def main() -> int:
    chosen = arguments()
    comfyui = set_up()
    enter_environment()

    from runner.places import ROOT

    sys.path.append(str(BENCHES.parents[1]))  # last: the host has a module `nodes` too
    from lab.benches._pages import update
    from lab.benches._report import RESULTS, print_table, write
    from lab.demo_world.host import use_comfy

    use_comfy(comfyui)
    for name in chosen:
        say(f"\n{name}")
        bench = importlib.import_module(f"lab.benches.{name}")
        result = bench.measure()
        print_table(bench.table(result))
        say(f"written to {write(name, result)}")
    update(ROOT, RESULTS)
    return 0


if __name__ == "__main__":
    run(main)
