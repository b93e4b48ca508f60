"""Speed, size and memory of models, by part, against what the machine can do."""
