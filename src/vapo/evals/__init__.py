"""avg@k, pass@k and maj@k over any engine and any task."""
