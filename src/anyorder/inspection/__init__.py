"""Looking at networks: comparisons and measurements."""
