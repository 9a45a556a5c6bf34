"""How the cost of a job changes as things grow: distinct keys, workers, shards, messages, misses.

Every point is measured like the bench's warm run, by children of this process on a real store, at
saturation and with a fixed mix of tiers: so many of the jobs are answered by the worker's memory,
so many by the store, so many by the model. Otherwise more keys would mean fewer hits, and what was
measured would be the workload.

    point.py      one point: how many of everything, and the mix
    axes.py       which points there are
    asking.py     the producer that keeps to the mix
    filling.py    puts answers into the store in bulk, through the scripts that workers use
    ground.py     what a point stands on: an embedded server, or a real cluster on loopback
    measuring.py  a point's figures
    document.py   the figures of an axis: JSON and table
    hit_ratio/    the memory tier against other caches on traces (no store, no processes)
"""
