"""Jobs that wait: for a node with room, for an earlier job of their session, or for a limit."""
