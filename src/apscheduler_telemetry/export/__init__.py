"""What reads the metrics state: Prometheus, OpenTelemetry and health reports."""
