"""The policy half of the engine: which sequence computes which tokens next. No torch, no NumPy, no arithmetic."""
