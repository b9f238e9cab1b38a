"""Training data: one schema, a builder for each dataset, and batches of both."""
