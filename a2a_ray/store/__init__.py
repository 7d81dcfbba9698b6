"""Stored runs: the Delta Lake tables of turns and findings. The only package that imports deltalake."""
