"""What a base model is: architecture, weights, tokenizer. Knows nothing of adapters or requests."""
