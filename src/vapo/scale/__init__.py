"""The protocols of trainer and rollout, kept with Ray and FSDP2 by many processes."""
