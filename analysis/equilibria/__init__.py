"""Equilibria assessed from trajectories: fits, tests, positions in text and negotiations."""
