"""Where a training step's time goes: a traced step, its operations told apart, beside what it had to compute."""
