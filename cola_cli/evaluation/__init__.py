"""The eight generative benchmarks of the Cola DLM paper: data, prompts, scoring, honest metrics."""
