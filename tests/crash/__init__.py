"""The broker killed at every point, and at any moment: what was acknowledged stays, and nothing is there twice."""
