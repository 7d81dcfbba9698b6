"""`a2a-ray show`."""

from __future__ import annotations

from typing import Annotated

import typer

from a2a_ray.interface.command_helpers import analysis_settings, explain_continue
from a2a_ray.interface.options import NO_EMBEDDER, EmbedderName, Source, Threshold
from a2a_ray.runtime.progress import print_status


def show(
    source: Source,
    conversation: Annotated[str | None, typer.Argument(metavar="CONVERSATION", help="Id of one conversation.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Print at most N conversations; 0 for all.")] = 5,
    embedder: EmbedderName = NO_EMBEDDER,
    threshold: Threshold = None,
) -> None:
    """Print conversations as chats, with their findings. Repeated passages are highlighted.

    Analyzes the run first if needed, as `a2a-ray analyze` does.
    """
    from rich.console import Console

    from a2a_ray.interface.show_conversations import show_conversations
    from a2a_ray.report.analyze_source import analyze_source

    with explain_continue():
        results = analyze_source(source, analysis_settings(embedder, threshold))
    printed = show_conversations(results, Console(), conversation, limit)
    if conversation is None and printed < len(results.ids):
        left = len(results.ids) - printed
        more = "1 more conversation" if left == 1 else f"{left} more conversations"
        print_status(
            f"{more}: --limit 0 prints all; a2a-ray show {source} ID prints one. Ids run from"
            f" {results.ids[0]} to {results.ids[-1]}."
        )
