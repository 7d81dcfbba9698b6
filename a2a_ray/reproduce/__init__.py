"""The experiments of the two papers, and the demonstration."""
