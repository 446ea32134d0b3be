"""What is read in a module's bytes, and what is written into them. Pure."""
