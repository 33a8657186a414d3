"""Tables, fits and figures from finished runs. Imports no torch."""
