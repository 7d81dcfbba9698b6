"""The commands of `a2a-ray`; `interface/cli.py` registers them."""
