"""The processes: how they start, run as whom, stop, and what they tell: metrics, health."""
