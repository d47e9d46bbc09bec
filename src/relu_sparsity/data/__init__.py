"""Text to token batches: sources, tokenizer and input pipeline."""
