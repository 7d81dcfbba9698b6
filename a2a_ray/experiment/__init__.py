"""Experiment specifications: what runs, checked before anything starts. Does not import Ray."""
