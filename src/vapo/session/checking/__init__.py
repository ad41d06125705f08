"""Everything that can be wrong before a run costs anything: a list of checks, each with what was found and the fix.

finding       one check's outcome
inspection    the checks, in order
answers       the verifier on right answers and on garbage
short_run     two real steps, with a save and a resume between them
"""
