"""The worker's shell around the resolver: one long-running loop a file."""
