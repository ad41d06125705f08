"""Value pretraining and the joint loop, their state and their records."""
