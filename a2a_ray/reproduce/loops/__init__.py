"""The published loop experiment (arXiv 2512.06256), with the factors that its authors left open."""
