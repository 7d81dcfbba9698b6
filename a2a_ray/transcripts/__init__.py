"""Readers and writers of transcript files, one module per format."""
