"""Runs agent-to-agent conversations on Ray, keeps every turn, and finds biased equilibria and loops in them."""
