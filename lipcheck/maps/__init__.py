"""Nonlinear maps, one file a family: their constants on a range, and where their outputs can be."""
