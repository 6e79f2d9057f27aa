"""txlab: learn and do LLM fine-tuning inside the notebook."""
