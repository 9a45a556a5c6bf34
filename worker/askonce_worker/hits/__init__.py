"""The hit log: a bounded sample of what was reused, for people to judge ten minutes a week.

Every hit that is shown was redacted before it left its worker. What people say of it takes the
answer back, can keep its like from the cache (`rules.py`), and measures how often hits are wrong.
"""
