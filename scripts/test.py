"""Set up, run the tests tier by tier, report what each took.

python3 scripts/test.py              all tiers
python3 scripts/test.py unit host    only these
python3 scripts/test.py extended     long tests, on the newer ComfyUI in COMFYUI_PATH and on newer frontends
"""

import argparse

from runner.setup import enter_environment, set_up
from runner.stop import run
from runner.tiers import TIERS, run_extended, run_tiers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", nargs="*", help=f"any of: {', '.join(TIERS)} (default: all)")
    chosen = parser.parse_args().tier
    extended = chosen == ["extended"]
    unknown = [] if extended else [tier for tier in chosen if tier not in TIERS]
    if unknown:
        parser.error(f"unknown tier {unknown[0]}; choose from {', '.join(TIERS)}")
    comfyui = set_up()
    enter_environment()
    return run_extended(comfyui) if extended else run_tiers(comfyui, chosen or list(TIERS))


if __name__ == "__main__":
    run(main)
