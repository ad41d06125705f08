"""A run from its settings to its end: settings, inputs, objects, life, evaluation, signals."""
