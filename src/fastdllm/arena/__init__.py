"""The arena: a set of methods answers the same problems, and one table says what each answer cost."""
