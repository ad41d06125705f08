"""Experiment trackers: observers that send figures, samples and alarms to TensorBoard, W&B, MLflow and trackio."""
