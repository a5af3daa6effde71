"""The adapter for APScheduler 3. Private names of APScheduler appear in this package only."""
