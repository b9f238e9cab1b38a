"""Optimisation: of avatars now, one jitted step over plain pytrees."""
