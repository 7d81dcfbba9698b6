"""Local Hugging Face models as agents."""
