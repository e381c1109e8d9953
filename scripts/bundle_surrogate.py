"""Put the surrogate of a training run into the package, its matrices in 8 bits.

    python scripts/bundle_surrogate.py RUN

RUN is a folder of `crystal-gym train surrogate`; the command of the bundled one is in its model
card, crystal_gym/data/surrogate/README.md.
"""

import argparse
import json
from pathlib import Path

import torch

from crystal_gym.agents.surrogate import (
    BUNDLED_SURROGATE,
    in_eight_bits,
    load_surrogate,
    surrogate_folder,
)
from crystal_gym.files import atomic_path, sha256_of


def main() -> None:
    """Write config.json and weights.pt; 8 bits change a gap by 0.002 eV in the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    surrogate, _ = load_surrogate(run)  # refuses what is damaged
    config = json.loads((surrogate_folder(run) / "config.json").read_text(encoding="utf-8"))
    weights = in_eight_bits(surrogate.state_dict())
    with atomic_path(BUNDLED_SURROGATE / "weights.pt") as path:
        torch.save(weights, path)
        config["weights_sha256"] = sha256_of(path)
    with atomic_path(BUNDLED_SURROGATE / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    load_surrogate()
    size = (BUNDLED_SURROGATE / "weights.pt").stat().st_size
    print(f"{BUNDLED_SURROGATE}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
