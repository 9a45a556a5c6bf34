"""The benchmark: every figure of the design's last table that one machine can measure, in one run.

What is measured are real processes on a real store: a worker, a producer and the stand-in model
server as children of the bench, an embedded store in a temporary folder. One measurement a file:

    warm.py        jobs/s from enqueue to reply, CPU of worker, store and producer, store commands
    floor.py       CPU of the bare batched commands that a job cannot do without
    enqueue.py     jobs/s into the queue, with nobody at the other end
    tiers.py       CPU of jobs that the store or the model answers, and of long texts
    latency.py     an open loop, timed from the intended start
    stampede.py    many processes ask the same cold questions at once: calls counted by the model
    footprint.py   the store's memory per answer

Around them: `plan.py` (how much), `figures.py` (what, and the goals), `child.py` and `children.py`
(the two ends of a child process), `running.py` (all of it, cleaned up whatever happens).
"""
