"""Quality of restored pictures by named protocols."""
