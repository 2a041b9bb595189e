"""Tasks: contexts with questions about them, and how answers are scored."""
