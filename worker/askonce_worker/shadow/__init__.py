"""Shadow checks: what it costs to be wrong, measured.

A sample of the hits is held against fresh answers of the model. From the verdicts of the whole
fleet follows how many hits are wrong, by age. A task that has said how many may be wrong serves
only younger answers, or none, once they are more.

    sampler.py    picks hits, and has them checked when the model has nothing better to do
    verdicts.py   what was found: counted by label and age, read back for the whole fleet
    guard.py      what follows for a task with `max_disagreement`
    report.py     what `askonce stats` says of it

The checking itself is the resolver's (`verifier.py`): it takes leases and fills.
"""
