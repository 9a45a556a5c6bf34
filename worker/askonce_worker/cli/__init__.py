"""The `askonce` command."""
