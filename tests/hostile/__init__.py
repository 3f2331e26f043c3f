"""Hostile files: whatever bytes a parser is given, it gives a right result or one clear sentence."""
