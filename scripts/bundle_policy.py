"""Put the policy of a training run into the package, in half precision, and its formulas.

    python scripts/bundle_policy.py RUN

RUN is a folder of `crystal-gym train`; the command of the bundled one is in its model card,
crystal_gym/data/policy/README.md.
"""

import argparse
import json
from pathlib import Path

from crystal_gym.agents.model_files import CONFIG, write_model
from crystal_gym.agents.policy import BUNDLED_POLICY, load_policy, load_weights, policy_folder
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.evaluation.metrics import compositions
from crystal_gym.known_formulas import KnownFormulas


def main() -> None:
    """Write config.json and weights.pt; a weight of 16 bits changes no measure by 0.1 points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    load_policy(run)  # refuses what is damaged
    config = json.loads((policy_folder(run) / CONFIG).read_text(encoding="utf-8"))
    weights = {k: v.half() if v.is_floating_point() else v for k, v in load_weights(run).items()}
    write_model(BUNDLED_POLICY, config, weights)
    policy = load_policy()
    training = load_trajectories(policy.metadata["settings"]["dataset"])
    KnownFormulas.of(compositions(training.finished)).bundle()
    print(f"{BUNDLED_POLICY}: {(BUNDLED_POLICY / 'weights.pt').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
