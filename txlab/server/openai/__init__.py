"""The same engine behind OpenAI's API: models, completions and chat completions."""
