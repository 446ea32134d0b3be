"""What is counted. Pure."""
