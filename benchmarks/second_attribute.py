"""What a second attribute adds to an epoch of the embedded model, on these devices.

    python benchmarks/second_attribute.py --epochs=3 --pairs=2

Runs of gender alone and of gender with skin tone, its classifier and the joint reward,
take turns, otherwise with the settings of configs/mech_eng.py:embedded; the first epoch
of each compiles and is left out. Prints the medians and the ratio of each pair.
"""

import argparse
import json
import tempfile
from pathlib import Path

import cpu

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
import sys
sys.path.insert(0, {configs!r})
import mech_eng
from ddpo_fair import config as configuration

def get_config(variant=None):
    config = mech_eng.get_config("embedded")
    if {both}:
        config.attributes.skin_tone = configuration.attribute(
            classes=("light", "medium", "dark"), confidence_threshold=0.5
        )
        config.reward.combine = "joint"
    return config
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3, help="of a run, two or more")
    parser.add_argument("--pairs", type=int, default=2, help="of runs")
    options = parser.parse_args()
    ratios = []
    for pair in range(options.pairs):
        order = (False, True) if pair % 2 == 0 else (True, False)  # drifts cancel
        seconds = {both: epoch_seconds(both, options.epochs) for both in order}
        ratios.append(seconds[True] / seconds[False])
        print(json.dumps({"gender": seconds[False], "both": seconds[True]}), flush=True)
    print("ratios:", ", ".join(f"{ratio:.3f}" for ratio in ratios))


def epoch_seconds(both: bool, epochs: int) -> float:
    """The median epoch of a run, without the first one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.py"
        file.write_text(CONFIG.format(configs=str(ROOT / "configs"), both=both))
        return cpu.our_epochs(epochs, [], str(file))[0]["epoch"]


if __name__ == "__main__":
    main()
