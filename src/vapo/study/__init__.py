"""A grid of methods, seeds and base models as ordinary runs, and the page that compares them."""
