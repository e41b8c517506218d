"""What a preset costs before it is started: memory, work, time and disk (`make plan`).

trace.py counts on the meta device; pieces.py is what is counted: the model's own code; loads.py: what each stage asks of a
rank; memory.py: where a rank keeps it; work.py: FLOPs, time, disk; advice.py: settings that would fit; tables.py: for people.
"""
