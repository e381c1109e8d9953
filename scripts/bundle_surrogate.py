"""Put the surrogate of a training run into the package, its matrices in 8 bits.

    python scripts/bundle_surrogate.py RUN

RUN is a folder of `crystal-gym train surrogate`; the command of the bundled one is in its model
card, crystal_gym/data/surrogate/README.md.
"""

import argparse
import json
from pathlib import Path

from crystal_gym.agents.model_files import CONFIG, write_model
from crystal_gym.agents.surrogate import (
    BUNDLED_SURROGATE,
    in_eight_bits,
    load_surrogate,
    surrogate_folder,
)


def main() -> None:
    """Write config.json and weights.pt; 8 bits change a gap by 0.002 eV in the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    surrogate, _ = load_surrogate(run)  # refuses what is damaged
    config = json.loads((surrogate_folder(run) / CONFIG).read_text(encoding="utf-8"))
    write_model(BUNDLED_SURROGATE, config, in_eight_bits(surrogate.state_dict()))
    load_surrogate()
    size = (BUNDLED_SURROGATE / "weights.pt").stat().st_size
    print(f"{BUNDLED_SURROGATE}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
