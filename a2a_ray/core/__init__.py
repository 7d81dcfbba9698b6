"""Messages, contracts, transcripts and the conversation loop. Imports neither Ray nor torch nor NumPy."""
