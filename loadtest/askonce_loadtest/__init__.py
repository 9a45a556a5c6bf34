"""Measure askonce, and stand in for what it talks to."""
