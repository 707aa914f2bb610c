"""Where cells are stored: the protocol of a source, retries of requests, and secrets that messages must not show."""
