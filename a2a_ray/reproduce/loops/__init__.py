"""The published loop experiment (arXiv 2512.06256) with the factors its authors left open; one file per question."""
