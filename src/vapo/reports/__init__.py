"""Reports about a run: curves, tables, one HTML page, and a live view in the terminal.

All reports except the live view read only the files of a run directory (`runfiles.py`), so a report can be made while
the run goes on, after it was killed, and on another machine.
"""
