"""Estimates the cost of a preset before it is started: memory, time, price and disk of every stage (`make plan`).

trace.py counts operations on the meta device. steps.py runs the stages' own code there: the losses and validations of
the training methods, sampling, streaming, encoders. loads.py has the demands of each stage on a rank, memory.py
distributes them over devices, communication.py has the bytes that ranks exchange, work.py the time of every stage and
the disk, advice.py finds settings that fit, refusal.py stops a command that does not fit, and tables.py formats.
"""
