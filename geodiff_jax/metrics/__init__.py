"""How good it is: measures on images, and the regions in which they count."""
