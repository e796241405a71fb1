"""What several test floors use."""
