"""Values of CQL types on their way into and out of a guest."""
