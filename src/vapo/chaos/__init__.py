"""Break runs on purpose, thousands of small ones if need be, and count what did not come out the same.

A zygote (a process that has imported everything and trained nothing) forks a child for every attempt, so a trial takes
about a second instead of the ten that starting Python and torch takes.
"""
