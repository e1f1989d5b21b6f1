"""Many copies of a model, on one machine or on a cluster of them: Ray places, watches and replaces them."""
