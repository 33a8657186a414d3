"""From the files in config/ to a resolved and checked study. Imports no torch and no pandas."""
