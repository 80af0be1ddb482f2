"""One organization uses up what callers share, and another one cancels."""
