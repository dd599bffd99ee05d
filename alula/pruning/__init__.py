"""Pruning as one call: what goes, under a target that is counted or measured, and the training that heals."""
