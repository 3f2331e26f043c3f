"""The networks and their configurations, nothing else. `models.config` needs no torch."""
