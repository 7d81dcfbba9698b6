"""Linear self-attention agents, and language models that solve the same task in context."""
