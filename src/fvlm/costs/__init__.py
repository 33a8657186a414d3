"""The cost of a run: parameters, FLOPs, memory, samples, hours, money; and the limits. Imports no torch."""
