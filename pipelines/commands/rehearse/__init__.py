"""Runs a full preset end to end at a small size on two CPU processes (`make rehearse`).

weights.py writes models with random weights in the layouts of the hub, sizes.py shrinks the preset, cotracker_hub.py
stands in for CoTracker's repository, and command.py runs the pipeline on them as a user would.
"""
