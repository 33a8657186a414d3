"""From rows of a source to WebDataset shards, ledgers, tokenizer and index."""
