"""Experiments, the store, and Ray: many conversations at once, every turn kept."""
