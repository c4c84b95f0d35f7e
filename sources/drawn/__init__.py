"""Synthetic images of garments with ground truth: what the `drawn` source draws."""
