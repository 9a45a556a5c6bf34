"""Models: the protocol, and one file a dialect."""
