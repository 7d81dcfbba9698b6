"""Distances between texts, embeddings, the rule of arXiv 2512.06256 and exact repetition."""
