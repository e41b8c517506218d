"""Estimates the cost of a preset before it is started: memory, work, time and disk (`make plan`).

trace.py counts operations on the meta device. pieces.py holds the computations that are counted, in the model's own
code. loads.py computes the demands of each stage on a rank, memory.py distributes them over devices, work.py computes
FLOPs, time and disk, advice.py finds settings that fit, and tables.py formats the estimate.
"""
