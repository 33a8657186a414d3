"""The figures, and the sentences that the report prints under each."""
