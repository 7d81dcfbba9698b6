"""What people touch: the command line, the report and the view of a conversation as a chat."""
