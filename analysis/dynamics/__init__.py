"""Closed forms and simulations of agents whose turns are affine maps."""
