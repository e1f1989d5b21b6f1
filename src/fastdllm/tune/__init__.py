"""Tuning: the fastest setting whose accuracy is not worse than plain decoding's, with the statistics for it."""
