"""Agents as Ray actors: start them, call them, recover them."""
