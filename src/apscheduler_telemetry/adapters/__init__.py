"""What watches a scheduler: an adapter for each major version of APScheduler."""
