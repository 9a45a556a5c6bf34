"""The open-loop driver: requests go out when they are due, whatever became of those before.

Each is timed from when it was *due*, in microseconds, so a stall counts for all that it delays and
nothing is left out because nobody asked meanwhile (no coordinated omission). When the driver itself
could not keep up, the run says that it is invalid.
"""
