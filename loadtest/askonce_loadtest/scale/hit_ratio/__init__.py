"""The memory tier against other caches of the same size, on the same requests: hits, not speed.

traces.py      the requests: synthetic ones, and files
policies.py    the caches: ours, LRU, the best possible (Belady), theine, moka-py
comparing.py   every cache on every trace at several sizes
"""
