"""Fits of losses against parameters, samples and FLOPs, and the points they are made of."""
