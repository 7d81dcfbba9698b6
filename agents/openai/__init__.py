"""Agents behind an OpenAI-compatible server."""
