"""What a run did, for people: curves, tables, one HTML page, and a live view in the terminal.

Everything but the live view reads the files of a run directory (`runfiles.py`), never live objects: a
report can be made while the run goes on, after it was killed, and on another machine.
"""
