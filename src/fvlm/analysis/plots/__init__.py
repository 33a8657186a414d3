"""The figures, their look, and what the report says under each."""
