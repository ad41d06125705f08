"""Break small runs on purpose, many times, and count those that do not come out the same.

A fork server imports everything once and forks a process for every attempt. So a trial takes about a second instead of
the ten that starting Python and torch takes.
"""
