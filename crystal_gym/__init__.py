"""Crystals to be filled, one element at a time: a Gymnasium environment with DFT rewards."""
