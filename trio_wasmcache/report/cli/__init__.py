"""The command line of the log tool: one click command for each question, and what they share."""
