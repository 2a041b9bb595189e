"""Measurements of quality, memory and speed, their records and plots."""
