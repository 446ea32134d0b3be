"""The few sentences of a report on which a person can act."""
