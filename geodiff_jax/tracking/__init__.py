"""From photographs to tracks: find the face, then fit head and camera."""
