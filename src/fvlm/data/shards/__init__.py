"""WebDataset shards, their ledgers, the tokenizer, and the index of a source."""
