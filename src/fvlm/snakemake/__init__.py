"""What the rules call while Snakemake parses and runs them; no command of `fvlm` imports it."""
