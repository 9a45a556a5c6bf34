"""What a worker counts, logs and reports."""
