"""Demonstrations and videos become batches. Importing this package imports none of its modules."""
