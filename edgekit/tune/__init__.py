"""Finding the setting of a machine and a model that takes the least energy, or answers the fastest."""
