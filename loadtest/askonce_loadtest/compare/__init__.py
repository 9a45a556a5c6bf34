"""The comparison: the same jobs through askonce and through what else one would take, in one run.

catalogue.py    the peers: what to install, what to run, with which settings and why
venvs.py        a virtual environment for each, built once and kept
peers/          what runs in them
plan.py         how much is asked
queues.py       one measurement of a queue with its workers
caches.py       one measurement of a cache
running.py      all of them, in shuffled order, each bounded, everything ended whatever happens
figures.py      medians, spreads, and ratios to askonce
report.py       table and JSON
plots.py        pictures of the JSON
"""
