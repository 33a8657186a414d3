"""What the sweeps decide: a table, and the page that the report opens with."""
