"""What a run will need, before any weights load: memory of each part and time of each phase, on any cluster.

hardware      devices by their data sheets, and a cluster's name
published     configurations of well-known models, for a machine without a network
live_bytes    bytes of live tensors while code runs on tensors without storage
traced        the forward and backward passes of policy and critic, measured so
workload      what is planned: sizes, lengths, and how they are dealt out to ranks
rank_memory   bytes of each part of a rank, by phase
phase_times   seconds of each phase of a step
advice        the cheapest change with which a run fits
planned       all of it for one configuration
plan_page     docs/plan.md
"""
