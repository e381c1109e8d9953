"""A regressor of the DFT band gap from a finished crystal, to see whether targets move gaps.

    python benchmarks/gap_regressor.py -o gap.pt [--epochs 30]

The network is the encoder preset "default" with one output, trained on the 8,813 labelled training
crystals; its error on the 2,484 validation crystals is printed and stored. What it says of a
crystal is a prediction of a surrogate, not DFT.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from crystal_gym.agents import MEGNetEncoderFactory
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.envs.observations import compact_rows
from crystal_gym.skeletons import SkeletonSet


class GapRegressor(nn.Module):
    """Finished crystals as rows ``(B, D)`` to gaps (eV), ``(B,)``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = MEGNetEncoderFactory("default").create((25,))
        self.out = nn.Linear(self.encoder.network.n_features, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.encoder(rows))[:, 0]

    @torch.inference_mode()
    def predict(
        self, skeletons: SkeletonSet, skeleton: np.ndarray, tokens: np.ndarray
    ) -> np.ndarray:
        """Return predicted gaps (eV, not below 0) of finished crystals."""
        self.eval()
        rows = finished_rows(skeletons, skeleton, tokens)
        parts = [self(rows[i : i + 512]) for i in range(0, len(rows), 512)]
        return torch.cat(parts).clamp(min=0.0).numpy()


def finished_rows(skeletons: SkeletonSet, skeleton: np.ndarray, tokens: np.ndarray) -> Tensor:
    focus = skeletons.n_sites[skeleton]  # no site: the encoder reads the whole crystal
    return torch.from_numpy(compact_rows(skeletons, skeleton, tokens, focus, None))


def one_each(data: Trajectories) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, skeletons, tokens and gaps of every crystal once."""
    first = np.unique(data.skeleton, return_index=True)[1]
    skeleton, tokens = data.skeleton[first], data.finished[first]
    rows = finished_rows(data.skeletons, skeleton, tokens)
    return rows, skeleton, tokens, data.band_gap_ev[first]


def load(path: Path | str) -> tuple[GapRegressor, float]:
    """Return a stored regressor and its mean absolute error on the validation crystals (eV)."""
    state = torch.load(path, weights_only=True)
    model = GapRegressor()
    model.load_state_dict(state["weights"])
    return model, state["validation_mae_ev"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    rows, _, _, gaps = one_each(load_trajectories("crystal-mp20-v0"))
    validation = load_trajectories("crystal-mp20-val-v0")
    _, skeleton, tokens, true = one_each(validation)
    goal = torch.from_numpy(gaps).float()
    model = GapRegressor()
    model.encoder.network.precision = getattr(torch, options.precision)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    average.module.encoder.network.precision = torch.float32
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=0.05)
    total = options.epochs * math.ceil(len(rows) / options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.learning_rate, total_steps=total, pct_start=0.05
    )
    begun = time.time()
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for part in torch.randperm(len(rows)).split(options.batch_size):
            loss = (model(rows[part]) - goal[part]).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            losses.append(float(loss.detach()))
        if epoch % 5 == 4 or epoch == options.epochs - 1:
            found = average.module.predict(validation.skeletons, skeleton, tokens)
            error = float(np.abs(found - true).mean())
            print(
                f"epoch {epoch + 1}: training {np.mean(losses):.3f} eV, validation MAE "
                f"{error:.3f} eV, {time.time() - begun:.0f} s",
                flush=True,
            )
            torch.save(
                {"weights": average.module.state_dict(), "validation_mae_ev": error}, options.output
            )


if __name__ == "__main__":
    main()
