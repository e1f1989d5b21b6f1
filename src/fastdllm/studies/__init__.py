"""Studies of a model: each runs on an engine and problems, and gives tables, JSON and a picture."""
