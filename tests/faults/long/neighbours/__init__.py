"""One organization uses up what all callers share, while another organization cancels."""
