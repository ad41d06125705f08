"""Policy and critic on Hugging Face transformers: loading, log-probabilities, values, saving."""
