"""Everything that can break a stage, tried at every point where it writes."""
