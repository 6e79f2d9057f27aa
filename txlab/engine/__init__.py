"""Time and order: the engine thread, its scheduler, the trainer and the sampler."""
