"""One script a peer: it runs in the peer's own virtual environment, with this folder on its path.

So these files import nothing of askonce and nothing that the peer's environment lacks, and each
other by bare names. `harness.py` is their end of the pipe to the comparison, `drivers.py` hands
jobs in and times them, `recipe.py` is the get-or-call recipe that the queues' workers follow, and
`guard.py` ends a worker with its parent. Only `askonce_queue_peer.py` and
`askonce_library_peer.py` run in askonce's own environment.
"""
