"""Inject faults into small runs many times, and count the runs whose results differ from an undisturbed run.

A fork server imports everything once and forks a process for every attempt. So a trial takes about one second instead
of the ten seconds that starting Python and torch takes.
"""
