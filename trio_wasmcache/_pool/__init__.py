"""The pool of instances: functions, acquisitions, capacity, evictions, and events about them."""
