"""Find and clean long texts."""
