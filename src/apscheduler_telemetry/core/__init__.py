"""What every part of the package builds on: plain data, the metrics state, and its observers."""
