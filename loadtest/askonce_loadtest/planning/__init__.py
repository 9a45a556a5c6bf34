"""How large a deployment has to be: from a target and measured constants, by published formulae.

    target.py      what is wanted
    constants.py   what one machine does, measured by the bench
    traffic.py     how often each tier is asked, from Zipf's law and the TTL
    sizing.py      processes, connections, memory and money; what is scarce
    command.py     `python -m askonce_loadtest plan`

`docs/LOADTEST.md`, "Planning", has every formula. Pure but for `command.py`: no I/O.
"""
