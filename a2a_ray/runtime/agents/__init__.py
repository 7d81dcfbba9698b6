"""Agents as Ray actors: replicas, and the calls to them."""
