"""What is asked of a model, by kind."""
