"""Text, warnings and progress on the running node, on the page that queued it."""
