"""The agent of a box: it serves models, follows the fleet, and learns from local examples."""
