"""Chaos: real processes, a real store, and faults by a seeded schedule; then everything is counted.

What may never happen is counted by `jobs_audit.py` (jobs and replies), `calls_audit.py` (model
calls) and `leftovers.py` (what is left in the store and in processes), from journals that survive
`kill -9` of whoever wrote them.
"""
