"""Two real classifiers that need neither network nor key, their data, and a demo of askonce."""
