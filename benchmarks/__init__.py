"""Measurements as ratios, taken side by side in one run; not part of the package."""
