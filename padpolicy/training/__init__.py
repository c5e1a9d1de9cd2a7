"""Training: one visible loop. Sees policies through their interface only."""
