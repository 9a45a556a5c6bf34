"""`python -m askonce_worker` is the `askonce` command."""

from askonce_worker.cli.main import main

main()
