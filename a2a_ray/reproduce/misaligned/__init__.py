"""The experiments of `a2a-ray reproduce misaligned`: one module each, put together in `study.py`."""
