"""Ground floor: messages, contracts, transcripts and the conversation loop. Needs neither Ray nor torch nor NumPy."""
