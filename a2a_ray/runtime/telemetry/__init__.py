"""Log records, Prometheus metrics and OpenTelemetry spans of a run."""
