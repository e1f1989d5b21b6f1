"""How fast a model runs here, how close that is to what the machine can do, and how it grows."""
