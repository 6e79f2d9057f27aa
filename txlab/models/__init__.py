"""What a base model is: architecture, weights, tokenizer. Knows nothing of adapters or requests."""

import logging

# transformers is here for tokenizers and configurations alone: that it misses PyTorch is no news to a user.
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())
