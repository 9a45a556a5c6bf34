"""Workloads: who asks what, and when, as lines of JSON, so that any run can be repeated.

Every kind is a seeded generator of `Ask`s (`zipf`, `bursts`, `one_hit`, `trace`, `paraphrase`);
`texts` gives each key a text; `request` writes and reads the lines; `describe` says what is in
them. Nothing is held but the distinct texts of a texts file: a workload may be longer than memory.
"""
