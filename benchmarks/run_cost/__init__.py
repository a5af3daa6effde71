"""The parts of `runs.py`, which measures what a run costs when it is watched."""
