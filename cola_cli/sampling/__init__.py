"""Block-by-block generation: caches, the engine, token choice."""
