"""Flow matching: the path between latents and noise, its solvers, guidance, likelihood."""
