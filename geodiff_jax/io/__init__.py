"""Files in and out: images, films, whole-or-nothing writes."""
