"""Settings of the launches, each a `get_config("key=value,...")`."""
