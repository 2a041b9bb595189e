"""Reading and writing without end."""
